"""`python -m minivllm.sim`: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minivllm.sim import SLO, FixedCost, OpenLoop, SimulationConfig, read_results, sweep
from minivllm.sim.__main__ import KNOB_OPTIONS, main, make_parser, parse_grid, parse_slo

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--num-requests", "40"]
THE_LINE = (
    "--model llama-3-8b --gpu h100 --rate 20 --mix chat90-doc10 --budget 2048 --threshold 512"
)


def run(arguments, capsys):
    """Exit status, standard output, standard error."""
    try:
        status = main(arguments)
    except SystemExit as stop:  # argparse's own
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_line_of_the_readme(capsys):
    assert THE_LINE in (ROOT / "README.md").read_text()
    status, out, err = run([*shlex.split(THE_LINE), *QUICK], capsys)
    assert (status, err) == (0, "")
    scenario = SimulationConfig(
        OpenLoop("chat90-doc10", 20, num_requests=40),
        knobs={"max_num_batched_tokens": 2048, "long_prefill_token_threshold": 512},
    )
    result = scenario.run()
    assert result.table() in out
    assert "llama-3-8b on h100" in out
    assert "chat ttft" in out
    assert "doc max_itl" in out
    assert max(len(line) for line in out.splitlines()) <= 110


def test_as_a_program_it_leaves_its_status():
    def program(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "minivllm.sim", *arguments], cwd=ROOT,
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    status, out, err = program(*QUICK)
    assert (status, err) == (0, "")
    assert "TTFT" in out
    status, out, err = program("--gpu", "h10")
    assert (status, out) == (2, "")
    assert re.fullmatch(r"python -m minivllm.sim: error: gpu 'h10' .*Did you mean 'h100'\?\n", err)


def test_json_is_the_result(capsys):
    status, out, _ = run(["--json", "--rate", "7", "--slo", "ttft=1,tpot=0.05", *QUICK], capsys)
    assert status == 0
    data = json.loads(out, parse_constant=pytest.fail)  # no NaN: it is no JSON
    result = SimulationConfig(OpenLoop("chat", 7, num_requests=40)).run()
    assert data["summary"] == result.summary(SLO(ttft=1, tpot=0.05))
    assert data["scenario"]["gpu"] == "h100"
    assert "records" not in data
    _, again, _ = run(["--json", "--rate", "7", "--slo", "ttft=1,tpot=0.05", *QUICK], capsys)
    assert again == out


def test_json_says_null_where_there_is_no_number(capsys):
    arguments = ["--json", "--prompt-len", "5", "--output-len", "1", *QUICK]
    data = json.loads(run(arguments, capsys)[1], parse_constant=pytest.fail)
    assert data["summary"]["mean_tpot"] is None


def test_every_option_reaches_the_scenario(capsys, tmp_path):
    cost = tmp_path / "cost.json"
    from minivllm.sim import FittedCost

    FittedCost(0.02, {}, {0: 1e-5}, "from a file").save(cost)
    arguments = shlex.split(
        "--model qwen2.5-7b --gpu a100-80 --tp 2 --gpu-memory-utilization 0.8 --users 5 "
        "--think-time 0.5 --duration 9 --num-requests 12 --mix alpaca --seed 4 --until 30 "
        "--budget 512 --threshold 64 --max-num-seqs 9 --max-model-len 3000 --num-gpu-blocks 900 "
        "--block-size 8 --policy priority --preemption-mode swap --num-cpu-blocks 40 "
        "--victim least_computed --no-prefix-caching --no-chunked-prefill --no-reserve-full-prompt "
        "--json"
    )
    status, out, err = run([*arguments, "--cost", str(cost)], capsys)
    assert (status, err) == (0, "")
    scenario = json.loads(out)["scenario"]
    assert scenario["model"] == "qwen2.5-7b"
    assert scenario["gpu"] == "a100-80"
    assert scenario["tensor_parallel"] == 2
    assert scenario["gpu_memory_utilization"] == 0.8
    assert scenario["seed"] == 4
    assert scenario["until"] == 30
    assert scenario["cost"]["title"] == "from a file"
    assert scenario["workload"] == {
        "kind": "closed", "mix": "alpaca", "users": 5, "think_time": 0.5, "duration": 9.0,
        "num_requests": 12,
    }  # fmt: skip
    assert set(scenario["knobs"]) == set(KNOB_OPTIONS)
    assert scenario["knobs"]["long_prefill_token_threshold"] == 64
    assert scenario["knobs"]["enable_chunked_prefill"] is False
    config = json.loads(out)["config"]
    assert {name: config[name] for name in KNOB_OPTIONS} == scenario["knobs"]


def test_bursts_and_traces(capsys, tmp_path):
    _, out, _ = run(["--json", "--burstiness", "0.5", *QUICK], capsys)
    assert json.loads(out)["workload"]["burstiness"] == 0.5
    trace = tmp_path / "t.csv"
    trace.write_text("arrival,prompt_len,output_len\n0,50,5\n1.5,60,7\n")
    _, out, _ = run(["--json", "--trace", str(trace)], capsys)
    data = json.loads(out)
    assert data["summary"]["num_finished"] == 2
    assert data["workload"] == {"kind": "trace", "name": "t.csv", "num_requests": 2}


def test_refused_requests_are_counted_if_asked(capsys):
    arguments = ["--num-gpu-blocks", "40", "--max-model-len", "2000", "--count-refused"]
    status, out, _ = run([*arguments, *QUICK, "--mix", "sharegpt"], capsys)
    assert status == 0
    assert re.search(r"\d+ refused; the first: request \d+:", out)


def test_the_configuration_for_a_real_server(capsys):
    status, out, _ = run(["--vllm", "--budget", "4096", "--rate", "3"], capsys)
    assert status == 0
    assert "vllm serve meta-llama/Llama-3.1-8B-Instruct" in out
    assert "--max-num-batched-tokens 4096" in out
    assert "--request-rate 3" in out
    assert "max_num_batched_tokens=4096" in out
    assert "TTFT" not in out  # nothing was simulated


@pytest.fixture
def measured(tmp_path):
    """What `vllm bench serve --save-result --save-detailed` writes, of three requests."""
    path = tmp_path / "measured.json"
    path.write_text(
        json.dumps(
            {
                "duration": 4.0, "completed": 3, "failed": 0,
                "input_lens": [100, 200, 300], "output_lens": [3, 2, 1],
                "ttfts": [0.1, 0.2, 0.3], "itls": [[0.01, 0.01], [0.02], []],
                "start_times": [50.0, 51.0, 53.0], "errors": ["", "", ""],
            }
        )
    )  # fmt: skip
    return path


def test_beside_a_measured_run(capsys, measured):
    status, out, _ = run(["--measured", str(measured)], capsys)
    assert status == 0
    assert re.search(r"metric +measured +simulated +ratio", out)
    assert re.search(r"mean_ttft +0\.2000 +0\.\d{4} +0\.\d\d", out)
    assert "measured.json, num_requests 3" in out  # its own requests were replayed
    data = json.loads(run(["--measured", str(measured), "--json"], capsys)[1])
    assert data["comparison"][0]["metric"] == "request_throughput"


FIELD = {
    "duration": 2.5, "completed": 3, "num_prompts": 3, "request_rate": "inf",
    "total_input_tokens": 60, "total_output_tokens": 12, "mean_ttft_ms": 30.0,
}  # fmt: skip


def test_a_summary_gives_its_own_traffic_or_is_said_to_be_unlike(capsys, tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(FIELD))
    status, out, err = run(["--measured", str(path), "--json"], capsys)
    data = json.loads(out)
    assert status == 0
    assert data["summary"]["num_finished"] == 3
    assert (data["workload"]["kind"], data["workload"]["num_requests"]) == ("trace", 3)
    assert "input_lens and output_lens are missing" in err
    assert data["notes"] == [
        line.removeprefix("python -m minivllm.sim: note: ") for line in err.splitlines()
    ]
    status, out, err = run(["--measured", str(path), *QUICK, "--rate", "4"], capsys)
    assert (status, "num_requests 40" in out) == (0, True)
    for words in ("--rate, --num-requests", "requests: 40 simulated, 3 measured", "inf measured"):
        assert words in err
    path.write_text(json.dumps({"duration": 2.5, "completed": 3, "mean_ttft_ms": 30.0}))
    _, _, err = run(["--measured", str(path)], capsys)
    assert re.search(r"total_input_tokens.*--save-detailed.*Simulated is mix chat, rate 10", err)


def test_options_for_traffic_are_not_used_if_the_file_has_requests(capsys, measured):
    status, out, err = run(["--measured", str(measured), *QUICK], capsys)
    assert (status, "num_requests 3" in out) == (0, True)
    assert "--num-requests: not used, its own requests are replayed" in err


def test_one_of_several_results_is_chosen(capsys, measured):
    text = measured.read_text()
    measured.write_text(text + "\n" + text.replace("4.0", "8.0"))
    _, out, err = run(["--measured", str(measured)], capsys)
    assert "it holds 2 results" in err
    assert re.search(r"request_throughput +0\.3750", out)
    _, out, _ = run(["--measured", str(measured), "--result", "1"], capsys)
    assert re.search(r"request_throughput +0\.7500", out)
    assert run(["--result", "1"], capsys)[0] == 2


def test_a_sweep_is_printed_written_and_taken_up_again(capsys, tmp_path):
    path = tmp_path / "rows.csv"
    arguments = ["--sweep", "rate=5,10", "--sweep", "budget=64,2048", *QUICK, "--out", str(path)]
    status, out, err = run([*arguments, "--workers", "1"], capsys)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split()[:2] == ["rate", "budget"]
    assert len(lines) == 1 + 4 + 1
    assert any(line.startswith("*") for line in lines[1:5])
    rows = read_results(path)
    expected = sweep(
        {"rate": [5, 10], "budget": [64, 2048]}, OpenLoop("chat", 10, num_requests=40),
        progress=False,
    )  # fmt: skip
    assert sorted(rows, key=str) == sorted(expected, key=str)
    before = path.read_bytes()
    status, out, _ = run([*arguments, "--json"], capsys)
    assert json.loads(out) == expected
    assert path.read_bytes() == before


def test_values_of_a_grid_are_what_they_look_like():
    assert parse_grid(["rate=5,7.5,1e1", "policy=fcfs, priority", "victim=none", "x-y=true"]) == {
        "rate": [5, 7.5, 10.0],
        "policy": ["fcfs", "priority"],
        "victim": [None],
        "x_y": [True],
    }
    assert parse_slo("ttft=1,max_itl=0.2") == SLO(ttft=1, max_itl=0.2)
    assert parse_slo(None) is None


def test_help_names_every_option_and_what_there_is(capsys):
    status, out, _ = run(["--help"], capsys)
    assert status == 0
    for action in make_parser()._actions:
        assert action.option_strings[0] in out
    for word in ("smollm2-135m", "a100-80", "chat90-doc10", "examples:", "exit status"):
        assert word in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--rate -3", ("rate", "greater than 0", "-3")),
        ("--rate nan", ("rate", "finite", "nan")),
        ("--rate fast", ("--rate", "fast")),
        ("--gpu h10", ("gpu", "h10", "h100")),
        ("--model gpt-5", ("model", "gpt-5")),
        ("--mix chitchat", ("mix", "chitchat", "'chat'")),
        ("--budget 0", ("max_num_batched_tokens", "at least 1")),
        ("--threshold -1", ("long_prefill_token_threshold", "-1")),
        ("--tp 3", ("tensor_parallel", "3")),
        ("--model llama-3-70b", ("llama-3-70b", "141", "tensor_parallel")),
        ("--seed -1", ("seed", "-1")),
        ("--users 0", ("users", "at least 1")),
        ("--users 3 --rate 5", ("--rate", "--users")),
        ("--users 3 --burstiness 2", ("--burstiness", "--users")),
        ("--think-time 2", ("--think-time", "--users")),
        ("--trace x.csv --rate 3", ("--rate", "--trace")),
        ("--cost nowhere.json", ("nowhere.json",)),
        ("--measured nowhere.json", ("nowhere.json",)),
        ("--prompt-len 5", ("--prompt-len", "--output-len")),
        ("--prompt-len -5 --output-len 3", ("--prompt-len", "-5")),
        ("--slo speed=1", ("--slo", "speed", "ttft")),
        ("--slo ttft=soon", ("--slo", "ttft", "soon")),
        ("--slo ttft=-1", ("ttft", "greater than 0")),
        ("--slo ttft", ("ttft", "''")),
        ("--duration 0", ("duration", "greater than 0")),
        ("--until -1", ("until", "-1")),
        ("--num-gpu-blocks 3", ("max_model_len=48", "--count-refused")),
        ("--policy random", ("--policy", "random")),
        ("--sweep rate", ("--sweep", "NAME=VALUE")),
        ("--sweep rate=1,,2", ("--sweep", "NAME=VALUE")),
        ("--sweep rate=1 --sweep rate=2", ("rate", "twice")),
        ("--sweep speed=1", ("speed",)),
        ("--sweep rate=1 --out x.xlsx", ("x.xlsx", ".csv")),
        ("--sweep rate=1 --pareto ttft", ("--pareto", "X,Y")),
        ("--sweep rate=1 --workers 0", ("--workers", "at least 1")),
        ("--sweep rate=1 --vllm", ("--vllm", "--sweep")),
        ("--out x.csv", ("--out", "--sweep")),
        ("--report no/such/place.html", ("--report", "no/such")),
        ("--sped 5", ("--sped",)),
        ("rate 5", ("rate",)),
    ],
)
def test_what_makes_no_sense_is_one_line_and_status_2(capsys, line, words):
    status, out, err = run([*QUICK, *shlex.split(line)], capsys)
    assert (status, out) == (2, "")
    last = err.rstrip("\n").splitlines()[-1]
    assert last.startswith("python -m minivllm.sim: error: ")
    for word in words:
        assert word in last
    # argparse shows the usage first; we do not.
    assert err.count("\n") == 1 or err.startswith("usage:")
    assert "Traceback" not in err


def test_a_trace_that_is_not_there_is_named(capsys):
    status, _, err = run(["--trace", "nowhere.csv"], capsys)
    assert status == 2
    assert re.fullmatch(r"python -m minivllm.sim: error: .*nowhere\.csv.*\n", err)


def test_a_sweep_of_which_a_point_fails_has_status_1(capsys, tmp_path):
    path = tmp_path / "rows.csv"
    arguments = ["--sweep", "num_gpu_blocks=3,900", *QUICK, "--out", str(path)]
    status, _, err = run(arguments, capsys)
    assert status == 1
    assert re.search(r"error: 1 point failed; the first, .*num_gpu_blocks", err)
    assert len(read_results(path)) == 1


def test_an_unknown_column_of_a_front_is_named(capsys):
    status, _, err = run(["--sweep", "rate=5", *QUICK, "--pareto", "joy,p99_ttft"], capsys)
    assert status == 2
    assert "'joy'" in err


# --- the report -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A run's page and a sweep's page."""
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("reports")
    line = [*shlex.split(THE_LINE), *QUICK, "--slo", "ttft=1,tpot=0.05", "--report"]
    assert main([*line, str(folder / "run.html")]) == 0
    line = ["--sweep", "rate=5,10", *QUICK, "--report", str(folder / "sweep.html")]
    assert main(line) == 0
    return folder


def test_a_report_holds_what_it_needs(reports):
    for name in ("run", "sweep"):
        text = (reports / f"{name}.html").read_text()
        assert not re.search(r"<(script|link|img)[^>]*(src|href)=['\"]?https?:", text)
        data = json.loads(re.search(r"id='data'>(.*?)</script>", text).group(1))
        assert all(figure["alt"] and figure["title"] for figure in data["figures"])
    text = (reports / "run.html").read_text()
    for word in ("TTFT", "goodput", "vllm serve", "max_num_batched_tokens", "chat90-doc10"):
        assert word in text


def test_nothing_in_a_report_ends_its_script(tmp_path):
    pytest.importorskip("plotly")
    from minivllm.sim.report import run_report
    from minivllm.sim.trace import Trace
    from minivllm.sim.workload import Arrival

    trace = Trace((Arrival(0, 5, 5, kind="</script><b>"), Arrival(1, 5, 5)), "<i>x</i>")
    scenario = SimulationConfig(trace, cost=FixedCost(0.1))
    text = run_report(scenario, scenario.run())
    assert text.count("</script>") == 3
    assert "<b>" not in text.split("</main>")[0]
    assert "<i>x" not in text.split("</main>")[0]


@pytest.mark.browser
@pytest.mark.parametrize("name", ["run", "sweep"])
def test_a_report_draws_offline(page, reports, name):
    """The fixture fails the test on any request beyond the file, and on any error in the log."""
    for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 30)")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": 360, "height": 800})
        page.goto((reports / f"{name}.html").as_uri())
        page.wait_for_selector(".plot .main-svg")
        slots = page.locator("figure").count()
        assert slots == (7 if name == "run" else 1)
        assert page.locator(".plot .main-svg:first-child").count() == slots
        body = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(body) == paper
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        paths = page.locator(".plot path.js-line").count()
        assert paths >= (10 if name == "run" else 1)
