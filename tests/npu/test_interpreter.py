"""Every op on its Triton kernels in Triton's interpreter: a third opinion on small cases, in NumPy on the CPU."""

from __future__ import annotations

import pytest
import torch
from triton.runtime.interpreter import InterpretedFunction

from mindie_cache.ops.cases import EPSILON, Case, cases
from mindie_cache.ops.triton.combine import combine_flat

MOST_ELEMENTS = 16384  # the interpreter is slow
TRUNCATION = 2.0  # it cuts fp32 to bf16 where devices round: up to twice the error


def elements(case: Case) -> int:
    arguments = [
        item for argument in case.arguments("cpu") for item in (argument if isinstance(argument, list) else [argument])
    ]
    return max(argument.numel() for argument in arguments if isinstance(argument, torch.Tensor))


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # NumPy's, where the case has NaN or Inf
@pytest.mark.parametrize("case", [case for case in cases() if elements(case) <= MOST_ELEMENTS], ids=str)
def test_right_in_the_interpreter(case: Case):
    assert not case.error(slack=TRUNCATION if "bfloat16" in case.name else 1.0)


def test_the_kernels_are_interpreted():
    assert isinstance(combine_flat, InterpretedFunction)


def test_two_truncations_are_the_slack_of_bfloat16():
    assert EPSILON[torch.bfloat16] * TRUNCATION == 2**-7
