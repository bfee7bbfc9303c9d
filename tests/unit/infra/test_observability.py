"""Rules and dashboard: well formed, and about numbers that the code reports."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "infra" / "observability"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
DASHBOARD = json.loads((FOLDER / "grafana_dashboard.json").read_text())


def expressions() -> list[str]:
    rules = [rule["expr"] for group in RULES for rule in group["rules"]]
    return rules + [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def exported_names() -> set[str]:
    """Return the names that Ray serves for ours."""
    metrics = pytest.importorskip("omnifarm.farm.metrics")
    names = {*metrics.COUNTERS, *metrics.GAUGES}
    for name in metrics.HISTOGRAMS:
        names |= {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return {f"ray_{name}" for name in names}


def test_every_number_shown_or_judged_is_one_that_the_code_reports() -> None:
    used = {name for text in expressions() for name in re.findall(r"\bray_omnifarm_\w+", text)}
    assert used
    assert used <= exported_names()


def test_every_number_that_the_code_reports_is_shown() -> None:
    shown = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    hidden = {name.removesuffix("_bucket") for name in exported_names() if not name.endswith(("_sum", "_count"))}
    assert {name for name in hidden if name not in shown} == set()


def test_every_number_in_the_tables_is_reported_by_somebody() -> None:
    from omnifarm.farm.metrics import COUNTERS, GAUGES, HISTOGRAMS

    tables = ROOT / "omnifarm" / "farm" / "metrics.py"
    code = " ".join(path.read_text() for path in (ROOT / "omnifarm").rglob("*.py") if path != tables)
    assert {name for name in {**COUNTERS, **GAUGES, **HISTOGRAMS} if f'"{name}"' not in code} == set()


def test_rates_are_taken_of_counters_and_of_nothing_else() -> None:
    for text in expressions():
        assert gauges_taken_for_counters(text) == [], text


def gauges_taken_for_counters(text: str) -> list[str]:
    """Return the gauges in what rates are taken of, up to its range: also inside a sum or a maximum."""
    rated = re.findall(r"\b(?:rate|irate|increase)\(([^\[]*)\[", text)
    names = [name for part in rated for name in re.findall(r"\bray_\w+", part)]
    return [name for name in names if not name.endswith(("_total", "_bucket"))]


def test_a_gauge_is_found_wherever_a_rate_is_taken_of_it() -> None:
    assert gauges_taken_for_counters("increase(max(ray_omnifarm_queue_failed)[30m:1m]) > 0")
    assert gauges_taken_for_counters("rate(ray_omnifarm_lanes[5m])")
    assert not gauges_taken_for_counters(
        "max(ray_omnifarm_lanes) > 0 and sum(rate(ray_omnifarm_steps_total[10m])) == 0"
    )


@pytest.mark.parametrize("text", expressions())
def test_prometheus_can_read_every_expression(text: str) -> None:
    assert promql_parser.parse(text)


def test_a_rule_records_or_alerts_and_an_alert_says_what_to_do() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    names = [rule.get("record") or rule["alert"] for group in RULES for rule in group["rules"]]
    assert len(names) == len(set(names))
    for group in RULES:
        for rule in group["rules"]:
            assert ("record" in rule) != ("alert" in rule)
            if "alert" in rule:
                assert rule["labels"]["severity"] in ("warning", "critical")
                assert rule["annotations"].keys() == {"summary", "description"}
                assert rule["alert"] in guide
                for section in re.findall(r'"([A-Z][^"]+)" in docs/operations.md', rule["annotations"]["description"]):
                    assert f"### {section}" in guide


def test_the_dashboard_has_what_grafana_needs_to_import_it() -> None:
    panels: list[dict[str, Any]] = DASHBOARD["panels"]
    assert DASHBOARD["uid"]
    assert DASHBOARD["schemaVersion"] >= 36
    assert len({panel["id"] for panel in panels}) == len(panels)
    (variable,) = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    taken = set()
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["datasource"]["uid"] == f"${{{variable['name']}}}"
        refs = [target["refId"] for target in panel["targets"]]
        assert len(refs) == len(set(refs))
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells


def test_grafana_reads_the_whole_dashboard_and_knows_every_field_of_it() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    def missing(ours: Any, theirs: Any, place: str) -> list[str]:
        """Return what of ours Grafana's own types do not give back."""
        if isinstance(ours, dict) and isinstance(theirs, dict):
            return [each for name in ours for each in missing(ours[name], theirs.get(name), f"{place}/{name}")]
        if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
            pairs = enumerate(zip(ours, theirs, strict=True))
            return [each for index, (one, other) in pairs for each in missing(one, other, f"{place}/{index}")]
        return [] if ours == theirs else [place]

    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert missing(DASHBOARD, read, "") == []
    misspelt = {**DASHBOARD, "panels": [{**DASHBOARD["panels"][0], "gridPosition": {}}]}
    assert missing(misspelt, json.loads(JSONEncoder().encode(Dashboard.from_json(misspelt))), "") == [
        "/panels/0/gridPosition"
    ]


def test_prometheus_reads_the_rules_and_rays_list_of_nodes() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    assert [(FOLDER / name).is_file() for name in config["rule_files"]] == [True]
    (scrape,) = config["scrape_configs"]
    assert scrape["file_sd_configs"] == [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}]
