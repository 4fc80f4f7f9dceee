"""Boundaries as numbers: the host waits for a device once, whoever asks."""

import pytest
import torch

from sparse_attn import parse, select_blocks
from sparse_attn.nn import RoutedSelfAttention, SparseSelfAttention
from sparse_attn.ops.boundaries import document_bounds, read_boundaries, row_bounds


class OnDevice(torch.Tensor):
    """A tensor that takes itself for a GPU's, and counts how often it is read."""

    reads = 0
    is_cuda = True

    def tolist(self):
        type(self).reads += 1
        return torch.Tensor.tolist(self)

    def __iter__(self):
        raise AssertionError("read number by number")


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> OnDevice:
    OnDevice.reads = 0
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return torch.tensor([0, 11, 11, 30]).as_subclass(OnDevice)


def test_a_device_is_waited_for_once_and_again_after_a_change(on_device: OnDevice) -> None:
    for _ in range(3):
        assert read_boundaries(on_device) == (0, 11, 11, 30)
    assert OnDevice.reads == 1
    on_device[1] = 5
    assert read_boundaries(on_device) == (0, 5, 11, 30)
    assert document_bounds(on_device, 30) == [0, 5, 11, 30]
    assert OnDevice.reads == 2


def test_all_layers_of_a_packed_pass_share_what_was_read(on_device: OnDevice) -> None:
    texts = ["window(5) | anchors(2, block=8)", "window(5) | topblocks(2, 4)", "window(3) | anchortree(2, 2, 1, 4)"]
    layers = [SparseSelfAttention(16, 2, parse(text)) for text in texts]
    layers.append(RoutedSelfAttention(16, 2, parse(texts[1])).eval())
    x = torch.randn(30, 16)
    expected = [layer(x, cu_seqlens=[0, 11, 11, 30]) for layer in layers]
    got = [layer(x, cu_seqlens=on_device) for layer in layers]
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert OnDevice.reads == 1


def test_a_choice_reads_boundaries_once_for_queries_and_keys(on_device: OnDevice) -> None:
    q, k, pattern = torch.randn(30, 4, 8), torch.randn(30, 2, 8), parse("window(5) | topblocks(2, 4)")
    expected = select_blocks(q, k, pattern, cu_seqlens_q=[0, 11, 11, 30])
    for _ in range(2):
        assert torch.equal(select_blocks(q, k, pattern, cu_seqlens_q=on_device), expected)
    assert OnDevice.reads == 1


def test_rows_of_documents() -> None:
    assert row_bounds([0, 0, 1, 9, 17], 8) == [0, 0, 1, 2, 3]
    assert document_bounds(None, 7) == [0, 7]
    assert document_bounds((0, 3, 7), 7) == [0, 3, 7]
