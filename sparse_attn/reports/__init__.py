"""What people look at: pattern pictures, terminal tables, the self-contained HTML report. Takes results as plain data."""
