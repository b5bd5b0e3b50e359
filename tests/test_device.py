"""Which precision a device gets."""

import pytest
import torch

from bequest import device
from bequest.device import place


@pytest.mark.parametrize(
    ("instructions", "precision"),
    [({"avx2": True}, "fp32"), ({"avx512_f": True}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"bf16": True}, "bf16")],
)
def test_auto_is_bf16_where_the_processor_multiplies_it(monkeypatch, instructions, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions)
    assert place("cpu", "auto").precision == precision
    assert place("cpu", "bf16").precision == "bf16"  # who asks for it gets it
    assert device.multiplies_bf16("cpu") == (precision == "bf16")
