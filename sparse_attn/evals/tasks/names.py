"""Names for things that facts are told of: none of them stands in the text that the facts are hidden in."""

from __future__ import annotations

from ..draws import Draws

CITIES = (
    "Nairobi", "Quito", "Osaka", "Reykjavik", "Montevideo", "Tallinn", "Windhoek", "Adelaide", "Bogota", "Hanoi",
    "Lusaka", "Vancouver", "Riyadh", "Medan", "Accra", "Tijuana", "Durban", "Auckland", "Caracas", "Dhaka",
    "Kigali", "Oaxaca", "Perth", "Jakarta", "Denver", "Kampala", "Manila", "Phoenix", "Santiago", "Taipei",
    "Brisbane", "Cebu", "Dakar", "Fresno", "Harare", "Incheon", "Karachi", "Lagos", "Maputo", "Nagoya",
)  # fmt: skip

_COLOURS = (
    "amber", "azure", "beige", "cobalt", "coral", "crimson", "cyan", "ebony", "emerald", "fuchsia", "indigo", "ivory",
    "jade", "khaki", "lilac", "magenta", "maroon", "mauve", "ochre", "olive", "russet", "saffron", "teal", "turquoise",
)  # fmt: skip
_ANIMALS = (
    "badger", "beaver", "bison", "camel", "cheetah", "condor", "dolphin", "ferret", "gazelle", "gecko", "heron",
    "iguana", "jackal", "koala", "lemur", "lynx", "marmot", "ocelot", "otter", "panda", "puffin", "salmon", "tapir",
    "walrus",
)  # fmt: skip

PEOPLE = (
    "Ines Okafor", "Tomas Lindqvist", "Yuki Tanabe", "Priya Raman", "Mateo Quispe", "Aroha Ngata", "Lars Eide",
    "Zanele Dube", "Omar Haddad", "Chloe Bergeron", "Ivo Marusic", "Leila Farahani", "Kofi Boateng", "Maren Vogt",
    "Diego Salcedo", "Hanna Virtanen", "Sanjay Pillai", "Noor Aziz", "Elif Demir", "Rosa Caldeira",
)  # fmt: skip


def keys(draws: Draws, count: int) -> list[str]:
    """That many different things, such as 'cobalt otter'.

    Raises:
        ValueError: more than there are.
    """
    pairs = [f"{colour} {animal}" for colour in _COLOURS for animal in _ANIMALS]
    return draws.sample(pairs, count)


def numbers(draws: Draws, count: int, digits: int = 7) -> list[str]:
    """That many different numbers."""
    found: list[str] = []
    while len(found) < count:
        number = draws.digits(digits)
        if number not in found:
            found.append(number)
    return found
