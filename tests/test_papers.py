"""The simulator beside three papers: the shapes that hold, and those that are said not to."""

from __future__ import annotations

import pytest

from minivllm.sim import papers
from minivllm.sim.cost import FixedCost, StepLoad, roofline

# --- vLLM: recompute against swap -----------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [256, 512, 1024, 2000])
def test_swapping_small_blocks_costs_more_and_recomputing_does_not_care(num_tokens: int) -> None:
    rows = papers.recompute_and_swap(num_tokens)
    swap = [row["swap"] for row in rows]
    # Whole blocks are copied: a coarser block may carry more empty slots, never more copies.
    copies = [-(-num_tokens // size) for size in papers.BLOCK_SIZES]
    for small, large, n_small, n_large in zip(swap, swap[1:], copies, copies[1:]):
        assert n_small > n_large
        assert small > large
    assert len({row["recompute"] for row in rows}) == 1
    assert all(row["swap"] == row["swap_in"] + row["swap_out"] for row in rows)
    even = papers.break_even_block_size(num_tokens)
    assert even is not None
    [at, before] = papers.recompute_and_swap(num_tokens, [even, even - 1])
    assert at["swap"] < at["recompute"]
    assert before["swap"] >= before["recompute"]


def test_the_link_at_which_the_papers_20_percent_holds() -> None:
    link = papers.effective_pcie()
    [row] = papers.recompute_and_swap(1024, [256], pcie_bandwidth=link)
    assert row["recompute"] == pytest.approx(1.2 * row["swap"], rel=1e-3)
    [faster] = papers.recompute_and_swap(1024, [256], pcie_bandwidth=2 * link)
    assert faster["recompute"] > 1.2 * faster["swap"]
    # One number is fitted to one sentence; the other sentence then follows.
    even = papers.break_even_block_size(1024, pcie_bandwidth=link)
    assert even is not None
    assert 16 <= even <= 64


def test_what_agrees_with_the_vllm_paper_and_what_does_not() -> None:
    checks = papers.check_recompute_and_swap()
    assert [check.agrees for check in checks] == [True, True, True, False, False]
    for check in checks:
        assert check.paper == papers.VLLM
        assert check.agrees or check.why
    text = papers.table(checks)
    assert text.count("\n") == len(checks) + 1
    assert "| no: " in text


def test_a_machine_without_a_link_worth_its_name_never_swaps() -> None:
    assert papers.break_even_block_size(1024, pcie_bandwidth=1e9) is None
    with pytest.raises(ValueError, match="pcie_bandwidth must be greater than 0"):
        papers.recompute_and_swap(64, pcie_bandwidth=0)
    with pytest.raises(ValueError, match="num_tokens"):
        papers.recompute_and_swap(0)
    with pytest.raises(ValueError, match="block_size"):
        papers.recompute_and_swap(64, [0])
    with pytest.raises(ValueError, match=r"gpu 'a1000'.*Did you mean"):
        papers.recompute_and_swap(64, gpu="a1000")


def test_a_prompt_in_chunks_is_the_sum_of_its_steps() -> None:
    cost = roofline("yi-34b", "a100-80", tensor_parallel=2)
    first, second = StepLoad(), StepLoad()
    first.add(512, 512, False)
    second.add(88, 600, True)
    expected = cost.step_time(first) + cost.step_time(second)
    assert papers.prefill_time(cost, 600, 512) == pytest.approx(expected)
    assert papers.prefill_time(FixedCost(2.0), 600, 100) == 12.0
