"""The searches as a user runs them: what they find and write, what they go on from, what they refuse, and several ranks."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import ranks
from toy import quiet

from mindie_cache import CacheConfig, ConfigError, enable_cache
from mindie_cache.calibration.search.evaluator import Evaluator, _rungs, key_of, resumes_at
from mindie_cache.calibration.search.findings import COSTS
from mindie_cache.calibration.search.made import Made
from mindie_cache.calibration.search.profile import Profile
from mindie_cache.calibration.search.ranks import place
from mindie_cache.calibration.search.scores import find, measured
from mindie_cache.calibration.search.store import Store
from mindie_cache.calibration.search.targets import TestbedTarget, UserTarget
from mindie_cache.testbed import TestbedConfig, TestbedTransformer, generate

ROOT = Path(__file__).parents[1]
TOY = Path(__file__).with_name("search_toy.py")
CPU = torch.device("cpu")
PROMPTS = ["a", "bcd", "ef"]
SMALL = ["--ratio", "1.2", "--intervals", "2", "3", "--ends", "10"]


def command(script, out, *arguments, prompts=PROMPTS):
    given = [part for prompt in prompts for part in ("--prompt", prompt)]
    model = ["--model-file", str(TOY), "--steps", "10", "--device", "cpu"]
    return [str(ROOT / "search_scripts" / f"search_{script}.py"), *model, "--out", str(out), *given, *arguments]


@pytest.fixture
def search(tmp_path, monkeypatch, capsys):
    """Runs a script in this process; returns its exit code, what it printed, and results.json."""

    def run(script, *arguments, out=tmp_path / "out", **others):
        monkeypatch.setattr(sys, "argv", command(script, out, *arguments, **others))
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
        results = out / "results.json"
        printed = capsys.readouterr()
        return ended.value.code, printed, json.loads(results.read_text()) if results.exists() else None

    run.out = tmp_path / "out"
    return run


@pytest.fixture
def evaluator(tmp_path):
    def make(folder="state", **options):
        target = UserTarget.load(TOY, 10, CPU)
        store = Store(tmp_path / folder, target.facts())
        return Evaluator(target, PROMPTS, [0, 1, 2], [find("latents")], store, **options)

    return make


def lines(out):
    return [json.loads(line) for path in sorted(out.glob("evaluations-*.jsonl")) for line in path.read_text().splitlines()]


def test_block_search_writes_a_setting_that_loads_and_does_what_it_says(search):
    code, printed, results = search("dit_block_cache", *SMALL)
    assert code == 0, printed.err
    assert "* " in printed.out
    found = results["dit_block_cache"]
    config = CacheConfig.from_yaml(search.out / "dit_block_cache.yaml")
    assert config.to_dict() == found["chosen"]["config"]
    assert found["chosen"]["ratios"]["calls"] >= 1.2
    enough = [row for row in found["all"] if row["ratios"]["calls"] >= 1.2]
    assert found["chosen"]["scores"]["latents"] == min(row["scores"]["latents"] for row in enough)
    module = runpy.run_path(str(TOY))
    model = module["build"]()
    uncached = [module["generate"](model, prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    with enable_cache(model, search.out / "dit_block_cache.yaml", num_inference_steps=10) as handle:
        errors = []
        for seed, prompt in enumerate(PROMPTS):
            made = module["generate"](model, prompt, seed)
            x, y = made.double(), uncached[seed].double()
            errors.append(float((x - y).square().sum() / y.square().sum()))
            assert handle.report().share_computed == pytest.approx(found["chosen"]["share_computed"])
    assert sum(errors) / 3 == pytest.approx(found["chosen"]["scores"]["latents"], rel=1e-3)


def test_the_front_is_of_all_settings(search):
    _, _, results = search("dit_block_cache", *SMALL, "--no-halving")
    rows = results["dit_block_cache"]["all"]
    points = [(row["share_computed"], row["scores"]["latents"]) for row in rows]
    best = {p for p in points if not any(o[0] <= p[0] and o[1] <= p[1] and o != p for o in points)}
    front = [(row["share_computed"], row["scores"]["latents"]) for row in results["dit_block_cache"]["front"]]
    assert {(round(share, 9), error) for share, error in front} == {(round(share, 9), error) for share, error in best}


def test_halving_runs_poor_settings_on_one_prompt_only(search):
    search("dit_block_cache", *SMALL)
    prompts = [entry["prompt"] for entry in lines(search.out)]
    assert prompts.count(0) > prompts.count(1) == prompts.count(2) > 0


def test_halving_goes_to_all_prompts_in_few_stages():
    assert [_rungs(count) for count in (1, 2, 3, 4, 5, 10, 20, 30)] == [
        [1],
        [1, 2],
        [1, 3],
        [1, 4],
        [1, 3, 5],
        [1, 3, 10],
        [1, 3, 9, 20],
        [1, 3, 9, 30],
    ]


def test_the_published_search(search):
    _, _, results = search("dit_block_cache", "--published", "--ratio", "1.25")
    facts = results["dit_block_cache"]["facts"]
    length = int(8 * (1 - (10 / 1.25 - 5 - 2) / 3))
    assert length == 5
    assert facts["stage_one"] == 8 - length
    assert [row[1] for row in facts["published"]] == [2, 2, 2]
    ranked = sorted(results["dit_block_cache"]["all"], key=lambda row: row["scores"]["latents"])
    first, interval, count, start = facts["published"][0]
    chosen = ranked[0]["config"]
    assert results["dit_block_cache"]["chosen"]["config"] == chosen
    window = (chosen["block_start"], chosen["step_interval"], chosen["block_end"] - chosen["block_start"])
    assert (*window, chosen.get("step_start", 0)) == (first, interval, count, start)


@pytest.mark.parametrize("cost", COSTS)
def test_attention_search_needs_attentions_and_says_so(search, cost):
    code, printed, _ = search("attention_cache", "--cost", cost)
    assert code == 2
    assert "attention" in printed.err


def test_knobs_by_grid(search):
    code, _, results = search("thresholds", "--method", "first_block", "--grid", "5", "--ratio", "1.1")
    assert code == 0
    assert len(results["first_block"]["all"]) >= 3
    code, printed, _ = search("adastep", "--skip-thr", "0.5", "1", "--ratio", "1.1", out=search.out.with_name("ada"))
    assert code == 0, printed.err


def test_knobs_by_optuna_go_on(search):
    pytest.importorskip("optuna")
    arguments = ["--method", "first_block", "--range", "threshold=0.001:1", "--ratio", "1.1"]
    code, printed, first = search("thresholds", *arguments, "--trials", "4")
    assert code == 0, printed.err
    assert first["first_block"]["facts"]["trials"] == 4
    code, _, more = search("thresholds", *arguments, "--trials", "7")
    assert code == 0
    assert more["first_block"]["facts"]["trials"] == 7
    known = [row["config"] for row in first["first_block"]["all"]]
    assert [row["config"] for row in more["first_block"]["all"]][: len(known)] == known
    for storage in ("nonsense://x", f"sqlite:///{search.out}/search.json"):
        code, printed, _ = search("thresholds", *arguments, "--trials", "7", "--storage", storage)
        assert code == 2
        assert f"--storage {storage} cannot be used" in printed.err


def test_a_search_that_was_interrupted_goes_on(search, monkeypatch):
    _, _, whole = search("dit_block_cache", *SMALL, out=search.out.with_name("whole"))
    original, count = UserTarget.generate, 0

    def generate_some(self, *args, **kwargs):
        nonlocal count
        count += 1
        if count == 15:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(UserTarget, "generate", generate_some)
    code, printed, results = search("dit_block_cache", *SMALL)
    assert (code, results) == (130, None)
    assert "the same command goes on" in printed.err
    before = lines(search.out)
    assert len(before) == 14 - len(PROMPTS)  # the uncached generations are files of their own
    code, _, results = search("dit_block_cache", *SMALL)
    assert code == 0
    assert lines(search.out)[: len(before)] == before
    assert len(lines(search.out)) == len({entry["key"] for entry in lines(search.out)})
    assert same(results) == same(whole)
    evaluated = count
    search("dit_block_cache", *SMALL)
    assert count == evaluated  # nothing is done twice


def same(results):
    """What does not depend on how fast the machine was."""
    found = results["dit_block_cache"]
    plain = [(row["config"], row["scores"], row["share_computed"]) for row in found["all"]]
    return plain, [row["config"] for row in found["front"]], found["chosen"]["config"]


def test_half_a_last_line_is_what_a_killed_process_leaves(evaluator, tmp_path):
    first = evaluator()
    config = CacheConfig("dit_block_cache", 8, 10, 2, 2, block_start=1, block_end=5)
    kept = first.run([config], "x")
    path = tmp_path / "state/evaluations-0.jsonl"
    content = path.read_bytes()
    path.write_bytes(content + content[:40])
    del first
    again = evaluator()
    assert again.run([config], "x") == kept
    again.run([CacheConfig("dit_block_cache", 8, 10, 2, 3, block_start=1, block_end=5)], "x")
    assert path.read_bytes() == content + content[:40]  # the new one is in a file of its own
    assert len(Store(tmp_path / "state", again.target.facts())._known) == 6


DAMAGE = {
    "evaluations-0.jsonl": [b"not json\n", b'{"key": "a"}\n', b"[]\n"],
    "search.json": [b"{", b"[]", b'{"format": "of another program"}'],
    "uncached-0.pt": [b"", b"half of a file"],
    "profile.json": [b"{", b'{"stacks": 3}'],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, cases in DAMAGE.items() for one in cases])
def test_damaged_state_is_refused_and_left_alone(search, name, content):
    search("dit_block_cache", *SMALL, prompts=PROMPTS[:1])
    file = search.out / name
    damaged = file.read_bytes() + content if name.endswith("jsonl") else content
    file.write_bytes(damaged)
    (search.out / "evaluations-0.jsonl").touch()
    arguments = ["--ratio", "1.3", *SMALL[2:]]  # new settings, so that everything is needed
    code, printed, _ = search("dit_block_cache", *arguments, prompts=PROMPTS[:1])
    assert code == 2
    assert name in printed.err
    assert file.read_bytes() == damaged


def test_foreign_folders_are_refused_and_left_alone(search, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("mine")
    code, printed, _ = search("dit_block_cache", out=tmp_path / "thesis")
    assert code == 2
    assert "holds no search (it has chapter.txt" in printed.err
    assert [path.name for path in (tmp_path / "thesis").iterdir() if not path.name.startswith(".")] == ["chapter.txt"]
    search("dit_block_cache", *SMALL, prompts=PROMPTS[:1])
    before = (search.out / "search.json").read_bytes()
    for changes in (["--seed", "5"], ["--prompt", "other"], ["--score", "psnr"]):
        code, printed, _ = search("dit_block_cache", *SMALL, *changes, prompts=PROMPTS[:1])
        assert code == 2
        assert "holds another search" in printed.err
    code, printed, _ = search("adastep", prompts=PROMPTS[:1])
    assert "search is 'search_dit_block_cache' there" in printed.err
    assert (search.out / "search.json").read_bytes() == before


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("dit_block_cache", ["--ratio", "1"], "Use a ratio above 1"),
        ("dit_block_cache", ["--ratio", "nan"], "--ratio=nan is out of range"),
        ("dit_block_cache", ["--ratio", "9"], "ratio=9.0 is out of reach"),
        ("dit_block_cache", ["--stacks", "single"], "no such list of blocks. Allowed: transformer_blocks"),
        ("dit_block_cache", ["--score", "pnsr"], "Did you mean 'psnr'"),
        ("dit_block_cache", ["--score", "no_such_module:f"], "cannot be imported"),
        ("dit_block_cache", ["--score", "search_toy:nothing"], "has no function 'nothing'"),
        ("dit_block_cache", ["--height", "64"], "--height is for a pipeline"),
        ("dit_block_cache", ["--guidance", "3"], "decides about it"),
        ("dit_block_cache", ["--device", "xpu"], "device='xpu' is not known"),
        ("dit_block_cache", ["--blocks", "layers"], "blocks='layers' is no list"),
        ("dit_block_cache", ["--block-ms", "transformer_blocks=0"], "with a time above 0"),
        ("dit_block_cache", ["--block-ms", "others=1"], "no such list of blocks"),
        ("adastep", ["--decay-ratio", "2"], "decay_ratio=2.0 is out of range"),
        ("adastep", ["--trials", "0"], "--trials=0 is out of range"),
        ("thresholds", ["--method", "dit_block_cache"], "has no threshold"),
        ("thresholds", ["--method", "teacash"], "Did you mean 'teacache'"),
        ("thresholds", ["--method", "first_block", "--range", "treshold=1:2"], "Did you mean 'threshold'"),
        ("thresholds", ["--method", "first_block", "--range", "threshold=2:1"], "LOW below HIGH"),
        ("thresholds", ["--method", "first_block", "--option", "order"], "give NAME=VALUE"),
        ("thresholds", ["--method", "first_block", "--option", "ordre=1", "--grid", "2"], "unknown key 'ordre'"),
    ],
)
def test_wrong_arguments(search, script, arguments, words):
    code, printed, _ = search(script, *arguments, prompts=PROMPTS[:1])
    assert code == 2
    assert words in printed.err
    assert printed.err.count("\n") <= 1 or "generation" in printed.err


@pytest.mark.parametrize("content", ["", "def build(): return 3\ndef generate(pipe, prompt, seed): pass\n"])
def test_files_that_do_not_keep_to_the_protocol(tmp_path, content):
    (tmp_path / "mine.py").write_text(content)
    with pytest.raises(ConfigError, match=r"has no function build|build\(\) returned int"):
        UserTarget.load(tmp_path / "mine.py", 10, CPU)


def test_scores(search):
    names = ["psnr", "latents", "frames", "search_toy:largest"]
    code, printed, results = search("dit_block_cache", *SMALL, *[part for name in names for part in ("--score", name)])
    assert code == 0, printed.err
    rows = results["dit_block_cache"]["all"]
    assert list(rows[0]["scores"]) == names
    assert "-psnr" in printed.out
    equal = Made(torch.ones(2, 3), torch.rand(1, 2, 12, 12, 3), 1.0)
    assert [measured(find(name), equal, equal) for name in ("latents", "frames")] == [0.0, 0.0]
    assert measured(find("ssim"), equal, equal) == pytest.approx(0.0, abs=1e-12)
    assert measured(find("latents"), Made(torch.full((2, 3), torch.nan), None, 1.0), equal) is None
    assert measured(find("latents"), Made(2 * equal.latents, None, 1.0), equal) == 1.0


def test_lpips_is_never_downloaded(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setattr("mindie_cache.calibration.search.scores.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install lpips"):
        find("lpips")
    monkeypatch.setattr("mindie_cache.calibration.search.scores.find_spec", lambda name: name)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(ConfigError, match="has no alexnet-"):
        find("lpips")


SMALL_MODEL = TestbedConfig(dim=24, blocks=5, heads=2)


def small_testbed():
    torch.manual_seed(0)
    model = TestbedTransformer(SMALL_MODEL).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize(
    "config",
    [
        CacheConfig("dit_block_cache", 5, 8, 3, 2, 7, 1, 4),
        CacheConfig("attention_cache", 5, 8, 2, 3, 6),
        CacheConfig("dit_block_cache", 5, 8, 0, 2, 7, 1, 4),
        CacheConfig("dit_block_cache", 5, 8, 3, 2, 7, 1, 4, options={"order": 1}),
        CacheConfig("attention_cache", 5, 8, 3, 3, 6, options={"order": 2}),
        CacheConfig("first_block", 5, 8, options={"threshold": 0.5}),
    ],
)
def test_generations_that_go_on_are_those_from_the_beginning(tmp_path, config):
    model, prompt = small_testbed(), "a red square moving left"
    target = TestbedTarget(model, steps=8)
    made = Evaluator(target, [prompt], [3], [find("latents")], Store(tmp_path, target.facts()))
    (outcome,) = made.run([config], "x")
    uncached = generate(model, [prompt], seeds=[3], steps=8)
    with quiet(), enable_cache(model, config, num_inference_steps=8) as handle:
        whole = generate(model, [prompt], seeds=[3], steps=8)
        share = handle.report().share_computed
        start = resumes_at(config)
        if start:
            trace = made.uncached(0).trace
            part = generate(model, [prompt], seeds=[3], steps=8, start=start, latents=trace[start])
            assert torch.equal(part.latents, whole.latents)
    x, y = whole.latents.double(), uncached.latents.double()
    assert outcome.scores["latents"] == float((x - y).square().sum() / y.square().sum())
    assert outcome.share == pytest.approx(share)
    assert (start > 0) == (config.step_start > 0)


def test_the_testbed_refuses_a_start_that_does_not_fit():
    model, prompts = small_testbed(), ["a red square moving left"]
    latents = torch.zeros(1, 3, 8, 24, 24)
    for given, words in [
        (dict(start=3), "needs the latents"),
        (dict(latents=latents), "begins with noise"),
        (dict(start=8, latents=latents), "start=8 is out of range"),
        (dict(start=3, latents=latents[:, :2]), "of shape"),
        (dict(start=3, latents=latents.half()), "float16"),
    ]:
        with pytest.raises(ValueError, match=words):
            generate(model, prompts, seeds=[0], steps=8, **given)


def test_the_profile_and_the_share_of_attentions(tmp_path):
    model = small_testbed()
    target = TestbedTarget(model, steps=8)
    made = Evaluator(target, ["a red square moving left"], [3], [find("latents")], Store(tmp_path, target.facts()))
    profile = made.profile
    assert [tuple(stack) for stack in profile.stacks] == [("transformer_blocks", 0, 5)]
    assert len(set(profile.block_ms)) == 1
    assert profile.block_ms[0] > 0 <= profile.rest_ms
    assert 0 < profile.attention_share < 1
    tokens = SMALL_MODEL.grid[0] * SMALL_MODEL.grid[1] * SMALL_MODEL.grid[2] + 4
    config = CacheConfig("attention_cache", 5, 8, 1, 2)
    with enable_cache(model, config, num_inference_steps=8) as handle:
        generate(model, ["a red square moving left"], seeds=[3], steps=8)
        (report,) = handle.report().models.values()
    assert profile.attention_bytes == report.bytes_peak
    assert profile.attention_bytes % (2 * 5 * 24 * 4) == 0
    assert tokens > 0
    assert Profile.from_dict(json.loads(json.dumps(profile.to_dict()))) == profile
    assert profile.with_times({"transformer_blocks": 7.0}).block_ms == (7.0,) * 5


def test_attention_search_checks_memory_first(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mindie_cache.testbed.load_testbed", lambda *_: small_testbed())
    script = str(ROOT / "search_scripts/search_attention_cache.py")
    common = ["--steps", "8", "--prompt", "a red square moving left", "--device", "cpu"]

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [script, *common, *arguments, "--out", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        return ended.value.code, capsys.readouterr()

    code, printed = run("--memory-gib", "0.0001")
    assert code == 2
    assert "1 attentions fit. Use --block-end 1" in printed.err or "attentions fit" in printed.err
    code, printed = run("--ratio", "1.2", "--starts", "1", "2")
    assert code == 0, printed.err
    config = CacheConfig.from_yaml(tmp_path / "out/attention_cache.yaml")
    assert config.method == "attention_cache"
    with enable_cache(small_testbed(), config, num_inference_steps=8) as handle:
        assert handle.config.blocks_count == 5


def test_any_number_of_ranks_finds_the_same_also_if_one_is_killed(search, tmp_path):
    _, _, alone = search("dit_block_cache", *SMALL)
    for size, killed in ((2, None), (4, 2)):
        out = tmp_path / f"ranks{size}"
        codes = ranks(size, command("dit_block_cache", out, *SMALL), DIE_RANK=str(killed))
        assert codes == [-9 if rank == killed else 0 for rank in range(size)]
        assert same(json.loads((out / "results.json").read_text())) == same(alone)
        entries = lines(out)
        assert len(entries) == len({entry["key"] for entry in entries}) == len(lines(search.out))  # nothing was done twice


def test_a_sharded_model_is_searched_as_one(search, tmp_path):
    _, _, alone = search("dit_block_cache", *SMALL)
    out = tmp_path / "sharded"
    arguments = command("dit_block_cache", out, *SMALL, "--sharded")
    arguments[arguments.index(str(TOY))] = str(TOY.with_name("sharded_toy.py"))
    assert ranks(2, arguments) == [0, 0]
    found = json.loads((out / "results.json").read_text())["dit_block_cache"]
    assert [row["config"] for row in found["all"]] == [row["config"] for row in alone["dit_block_cache"]["all"]]
    for row, other in zip(found["all"], alone["dit_block_cache"]["all"], strict=True):
        assert row["share_computed"] == other["share_computed"]
        assert row["scores"]["latents"] == pytest.approx(other["scores"]["latents"], rel=1e-3)
    assert {path.name for path in out.glob("evaluations-*")} == {"evaluations-0.jsonl"}  # one searches, the others follow


def test_keys_tell_settings_and_prompts_apart():
    config = CacheConfig("dit_block_cache", 8, 10, 2, 2)
    assert key_of(config, 0) == key_of(CacheConfig("dit_block_cache", 8, 10, 2, 2, options={"order": 0}), 0)
    others = [key_of(config, 1), key_of(CacheConfig("dit_block_cache", 8, 10, 2, 3), 0)]
    assert len({key_of(config, 0), *others}) == 3


@pytest.mark.parametrize("script", ["dit_block_cache", "attention_cache", "adastep", "thresholds"])
def test_help_teaches(script, monkeypatch, capsys):
    path = str(ROOT / f"search_scripts/search_{script}.py")
    monkeypatch.setattr(sys, "argv", [path, "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(path, run_name="__main__")
    shown = capsys.readouterr().out
    for word in ("examples:", f"python search_scripts/search_{script}.py", "torchrun", "--out", "--ratio", "results.json"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 130


def test_nothing_of_it_is_imported_with_the_package_nor_optuna_with_it():
    code = """
import sys
import mindie_cache
assert not [name for name in sys.modules if name.startswith("mindie_cache.calibration.search")]
import mindie_cache.calibration.search.command, mindie_cache.calibration.search.knobs
import mindie_cache.calibration.search.procedures
assert not {"optuna", "diffusers", "lpips"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_example_of_a_users_file(monkeypatch, tmp_path, capsys):
    path = str(ROOT / "search_scripts/search_thresholds.py")
    model = ["--model-file", str(ROOT / "examples/tune_my_model.py"), "--steps", "30", "--device", "cpu"]
    knobs = ["--method", "first_block", "--range", "threshold=0.1:0.2", "--grid", "2", "--ratio", "1.1"]
    arguments = [
        path,
        *model,
        *knobs,
        "--score",
        "ssim",
        "--prompt",
        "a red square moving left",
        "--out",
        str(tmp_path / "out"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(path, run_name="__main__")
    assert "* " in capsys.readouterr().out
    assert CacheConfig.from_yaml(tmp_path / "out/first_block.yaml").options.threshold in (0.1, 0.2)


def test_a_file_system_without_locks_is_said(evaluator, monkeypatch):
    made = evaluator()

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ConfigError, match="without locks"):
        made.prepare()


def test_two_processes_may_share_a_folder_without_torchrun(evaluator):
    config = CacheConfig("dit_block_cache", 8, 10, 2, 2, block_start=1, block_end=5)
    one, two = evaluator(), evaluator()
    one.run([config], "x")
    other = CacheConfig("dit_block_cache", 8, 10, 2, 3, block_start=1, block_end=5)
    two.run([config, other], "x")
    assert len(list(one.store.path.glob("evaluations-*.jsonl"))) == 2
    assert len(lines(one.store.path)) == 2 * len(PROMPTS)
    assert one.run([other], "x") == two.run([other], "x")


def test_ranks_need_devices_of_their_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert place("cpu") == (1, 2, CPU)
    with pytest.raises(ConfigError, match=r"2 ranks cannot share one device\. Use --device cuda"):
        place("cuda:1")
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="RANK='one' in the environment is no number"):
        place("cpu")
