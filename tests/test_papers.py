"""The simulator beside three papers: the shapes that hold, and those that are said not to."""

from __future__ import annotations

from itertools import pairwise

import pytest

from minivllm.sim import papers
from minivllm.sim.cost import FixedCost, StepLoad, roofline
from minivllm.sim.trace import Trace
from minivllm.sim.workload import Arrival, OpenLoop

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
    table = papers.table(checks)
    text, html = str(table), table._repr_html_()
    assert text.count("\n") == len(checks) + 1
    assert "| no: " in text
    assert html.count("<tr>") == len(checks) + 1
    assert "<td>no: " in html


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


# --- Sarathi-Serve: chunks --------------------------------------------------------------------


def test_chunks_cost_more_the_smaller_and_bound_a_steps_length() -> None:
    for num_tokens in (2048, 16_384):
        overhead = papers.chunking_overhead(num_tokens, (256, 512, 1024, 2048, num_tokens))
        values = list(overhead.values())
        assert all(small > large for small, large in pairwise(values) if large > 1)
        assert values[-1] == pytest.approx(1.0)
    for num_decodes in (4, 32):
        whole = [papers.hybrid_batch_latency(n, num_decodes, None) for n in (2048, 4096, 8192)]
        cut = [papers.hybrid_batch_latency(n, num_decodes, 256) for n in (2048, 4096, 8192)]
        assert whole[2] > 1.8 * whole[1] > 3.24 * whole[0]  # in proportion to the prompt
        assert max(cut) < 3  # whatever the prompt


def test_the_trade_off_of_table_4() -> None:
    rows = {(row["mix"], row["prompts"]): row for row in papers.table_4()}
    for mix in papers.TABLE_4:
        whole, chunked = rows[mix, "whole"], rows[mix, "chunked"]
        assert whole["tbt"] > 2 * chunked["tbt"]
        assert whole["ttft"] < chunked["ttft"] < 1.25 * whole["ttft"]
        # The rate was chosen for this one number; else the others would predict nothing.
        assert chunked["ttft"] == pytest.approx(chunked["published_ttft"], rel=0.05)
    longer = {
        mix: rows[mix, "whole"]["tbt"] / rows[mix, "chunked"]["tbt"] for mix in papers.TABLE_4
    }
    assert longer["summarisation"] > longer["conversation"]  # as published
    html = papers.show_table_4(list(rows.values()))._repr_html_()
    assert all(f"<td>{row['published_tbt']:.2f}</td><td>{row['tbt']:.2f}</td>" in html
               for row in rows.values())  # fmt: skip
    checks = papers.check_table_4(list(rows.values()))
    assert [check.agrees for check in checks] == [False, False, True, True]


def test_capacity_under_a_limit_on_the_time_between_tokens() -> None:
    model, gpus, limit, budget, published = papers.CAPACITY[0]
    chunked = papers.capacity(model, gpus, "conversation", budget, limit)
    whole = papers.capacity(model, gpus, "conversation", None, limit)
    assert papers.within(chunked / whole, published)


def test_largest_rate_finds_the_edge_and_never_asks_beyond() -> None:
    asked: list[float] = []

    def meets(rate: float) -> bool:
        asked.append(rate)
        return rate <= 3.7

    found = papers.largest_rate(meets, 0.1, 50.0, 1.01)
    assert 3.7 / 1.01 <= found <= 3.7
    assert max(asked) < 50.0
    assert papers.largest_rate(lambda rate: False, 0.1, 50.0) == 0.0
    with pytest.raises(ValueError, match="high must be greater than 1"):
        papers.largest_rate(meets, 1.0, 1.0)
    with pytest.raises(ValueError, match="precision"):
        papers.largest_rate(meets, 1.0, 2.0, 1.0)


# --- Orca: by iteration, by request -----------------------------------------------------------


@pytest.mark.parametrize("rate", [0.2, 0.7, 5.0])
def test_with_a_batch_of_one_the_two_are_the_same_queue(rate: float) -> None:
    arrivals = Trace.record(OpenLoop(papers.ORCA_MIX, rate, num_requests=60), 3).arrivals
    cost = papers.orca_cost()
    by_request = papers.request_level(arrivals, cost, 1)
    by_iteration = papers.iteration_level(arrivals, cost, 1)
    assert by_request == pytest.approx(by_iteration)


def test_requests_that_come_together_and_are_alike_gain_nothing() -> None:
    arrivals = tuple(Arrival(0.0, 32, 32) for _ in range(8))
    cost = papers.orca_cost()
    assert papers.request_level(arrivals, cost, 8) == pytest.approx(
        papers.iteration_level(arrivals, cost, 8)
    )
    uneven = tuple(Arrival(0.0, 32, 4 if i else 128) for i in range(8))
    padded, _ = papers.request_level(uneven, cost, 8)
    early, _ = papers.iteration_level(uneven, cost, 8)
    assert padded > 10 * early  # the short ones need not wait for the long one


def test_orcas_gain_and_what_it_depends_on() -> None:
    checks = papers.check_orca()
    assert [check.agrees for check in checks] == [True, False, True, True, True, True]
    assert all(check.agrees or check.why for check in checks)


def test_an_unloaded_request_is_a_prompt_and_its_decodes() -> None:
    assert papers.unloaded_latency(FixedCost(0.5), 128, 32) == 0.5
