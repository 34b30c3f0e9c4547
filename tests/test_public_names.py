"""The public names, fields and parameters. A change here is a change that users have to be told about."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields

import pytest

import mindie_cache
from mindie_cache import AdastepOptions, CacheAgent, CacheConfig, Report, ReuseOptions, StepRecord


def test_public_names():
    assert mindie_cache.__all__ == [
        "AdaCacheOptions",
        "AdaTaylorOptions",
        "AdastepOptions",
        "CacheAgent",
        "CacheConfig",
        "CacheError",
        "CacheHandle",
        "CacheReport",
        "CacheWarning",
        "Calibration",
        "CalibratorOptions",
        "CfgCacheOptions",
        "ConfigError",
        "CustomOptions",
        "DualBlockOptions",
        "DynamicBlockOptions",
        "EasyCacheOptions",
        "FasterCacheOptions",
        "FirstBlockOptions",
        "MagCacheOptions",
        "ModelExecError",
        "PabOptions",
        "ParametersInvalid",
        "PlanOptions",
        "Report",
        "ReuseOptions",
        "SeaCacheOptions",
        "StepRecord",
        "TaylorSeerOptions",
        "TeaCacheOptions",
        "__version__",
        "branch",
        "disable_cache",
        "enable_cache",
        "forget_request",
        "run",
    ]
    assert all(hasattr(mindie_cache, name) for name in mindie_cache.__all__)
    assert mindie_cache.ops.__all__ == [
        "Choice",
        "axis_filter",
        "band_split",
        "combine",
        "dequantize_rows",
        "explain",
        "low_pass",
        "magnitude_ratio",
        "quantize_rows",
        "quantized_delta",
        "relative_l1",
        "residual_delta",
        "use",
    ]


def defaults(kind: type) -> dict[str, object]:
    return {field.name: "required" if field.default is MISSING else field.default for field in fields(kind)}


def test_config_fields_their_order_and_defaults():
    assert list(defaults(CacheConfig).items()) == [
        ("method", "required"),
        ("blocks_count", "required"),
        ("steps_count", "required"),
        ("step_start", 0),
        ("step_interval", 1),
        ("step_end", 10000),
        ("block_start", 0),
        ("block_end", 10000),
        ("options", None),
        ("streams", None),
        ("placement", "device"),
    ]
    assert [field.name for field in fields(CacheConfig) if field.kw_only] == ["options", "streams", "placement"]


def test_options_fields_and_defaults():
    assert defaults(ReuseOptions) == {"order": 0, "max_distance": None, "ladder": "newton", "compute_steps": None}
    assert defaults(AdastepOptions) == {
        "order": 0,
        "max_distance": None,
        "ladder": "newton",
        "warmup_steps": 4,
        "final_steps": 1,
        "max_skip_steps": 4,
        "together": True,
        "sync": "now",
        "skip_thr": 0.015,
        "decay_ratio": 0.99,
        "relative": False,
        "parity": False,
    }
    assert all(field.kw_only for kind in (ReuseOptions, AdastepOptions) for field in fields(kind))


def test_report_fields():
    assert list(defaults(Report)) == ["method", "unit", "steps", "bytes_now", "bytes_peak", "seconds", "note"]
    assert list(defaults(StepRecord)) == ["branch", "step", "calls", "calls_reused", "reason"]


MARKS = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**", inspect.Parameter.KEYWORD_ONLY: "kw:"}


def parameters(function: object) -> str:
    signature = inspect.signature(function)
    shown = []
    for name, parameter in signature.parameters.items():
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**", parameter.KEYWORD_ONLY: "kw:"}.get(
            parameter.kind, ""
        )
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        shown.append(f"{mark}{name}{default}")
    return ", ".join(shown)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (CacheAgent.__init__, "self, config, process_group=None"),
        (CacheAgent.apply, "self, function, *args, **kwargs"),
        (CacheAgent.run, "self, request=None"),
        (CacheAgent.branch, "self, name='cond', kw:step=None, kw:timestep=None"),
        (CacheAgent.reset, "self"),
        (CacheAgent.report, "self"),
        (CacheAgent.calibration, "self"),
        (CacheConfig.validated, "self"),
        (CacheConfig.from_dict, "values"),
        (CacheConfig.from_yaml, "path"),
        (CacheConfig.from_json, "path"),
        (CacheConfig.to_dict, "self"),
        (CacheConfig.to_yaml, "self, path=None"),
        (CacheConfig.to_json, "self, path=None"),
        (Report.to_json, "self"),
        (mindie_cache.run, "request=None"),
        (mindie_cache.branch, "name='cond', kw:step=None, kw:timestep=None"),
        (mindie_cache.forget_request, "request"),
        (mindie_cache.ops.axis_filter, "x, gain, dims"),
        (mindie_cache.ops.band_split, "x, radius"),
        (mindie_cache.ops.combine, "snapshots, weights, reference=None, scales=None, dtype=None"),
        (mindie_cache.ops.dequantize_rows, "codes, scales, dtype=torch.float32"),
        (mindie_cache.ops.low_pass, "x, highest, dim"),
        (mindie_cache.ops.magnitude_ratio, "current, previous"),
        (mindie_cache.ops.quantize_rows, "x"),
        (mindie_cache.ops.quantized_delta, "output, reference"),
        (mindie_cache.ops.relative_l1, "current, previous"),
        (mindie_cache.ops.residual_delta, "output, reference"),
        (mindie_cache.ops.use, "mode"),
        (mindie_cache.ops.explain, "device='cpu'"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_parameters(function, expected):
    assert parameters(function) == expected


def test_an_agent_has_no_other_public_method():
    public = {name for name in vars(CacheAgent) if not name.startswith("_")}
    assert public == {"apply", "run", "branch", "reset", "report", "calibration"}


def test_public_things_are_documented():
    for name in mindie_cache.__all__:
        if name != "__version__":
            assert (getattr(mindie_cache, name).__doc__ or "").strip(), name


def test_the_version_is_a_release():
    assert [part.isdigit() for part in mindie_cache.__version__.split(".")] == [True] * 3
