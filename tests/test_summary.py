"""Summaries of records: known answers, a loop over resamples, and SciPy's bootstrap."""

import json
import random
import statistics

import numpy as np
import pytest
import scipy.stats

from amx_jax.data.results import plain
from amx_jax.evaluate.summary import mean_curve, summarise

LOCALISATIONS = ("energy", "energy_matched", "iou", "pointing")


def record(image, method="amx", **values):
    return {
        "image": image,
        "method": method,
        "target": {"index": 1, "name": "cat"},
        "area": 0.1,
        "holds": True,
        "sufficient": True,
        "necessary": False,
        "minimal": None,
        "components": 1,
        "probability": {"image": 0.8, "explanation": 0.4},
        "retention": {"noise": {"kept": 30, "trials": 32}},
        "bound": 0.9,
        **{key: None for name in LOCALISATIONS for key in (name, f"{name}_chance")},
        "insertion": None,
        "deletion": None,
        "seconds": 1.0,
        "passes": 100,
        "curve": None,
        "sensitivity": None,
        "controls": None,
        "randomised": None,
    } | values


def random_records(seed=0, photos=25, methods=("amx", "gradcam", "rise")):
    """Some photos lack a method, some values were not measured."""
    rng = np.random.default_rng(seed)
    records = []
    for photo in range(photos):
        scale = np.exp(rng.normal())
        for method in methods:
            values = {key: rng.random() for key in ("bound", "insertion", "deletion", "seconds")}
            for name in LOCALISATIONS:
                known = rng.random() < 0.7
                values[name] = rng.random() if known else None
                values[f"{name}_chance"] = rng.uniform(0.1, 0.5) if known else None
            values |= {key: bool(rng.random() < 0.5) for key in ("holds", "sufficient", "necessary")}
            area = min(1.0, 0.05 * scale * np.exp(0.2 * rng.normal()))
            if rng.random() < 0.9 or photo < 3:
                records.append(record(f"photo {photo}", method, area=area, **values))
    return records


def by_method(records, reference="amx"):
    return {summary["method"]: summary for summary in summarise(records, reference)}


# --- the methods ----------------------------------------------------------------------------------


def test_the_reference_is_first_and_the_others_follow_by_median_area():
    areas = {"rise": 0.3, "amx": 0.9, "gradcam": 0.1, "also 0.1": 0.1}
    records = [record("cat", method, area=area) for method, area in areas.items()]
    order = [summary["method"] for summary in summarise(records)]
    assert order == ["amx", "also 0.1", "gradcam", "rise"]
    assert summarise(records, "rise")[0]["method"] == "rise"
    assert summarise([]) == []


def test_the_order_of_the_records_does_not_matter():
    records = random_records()
    shuffled = random.Random(0).sample(records, len(records))
    assert summarise(shuffled) == summarise(records)


def test_a_summary_is_strict_json_and_the_same_from_records_that_were_saved():
    records = [*random_records(), record("empty", area=0.0, energy=float("nan"), energy_chance=0.2)]
    summaries = summarise(records)
    assert json.loads(json.dumps(summaries, allow_nan=False)) == summaries
    assert summarise(json.loads(json.dumps(plain(records)))) == summaries


def test_two_records_of_one_photo_and_method_are_refused():
    with pytest.raises(ValueError, match="two records of 'cat' and 'amx'"):
        summarise([record("cat"), record("cat", "rise"), record("cat")])


# --- figures of one method ------------------------------------------------------------------------


def test_figures_are_those_worked_out_by_hand():
    records = [
        record("a", area=0.1, holds=True, minimal=True, components=1, passes=10, bound=0.5),
        record("b", area=0.2, holds=True, minimal=False, components=3, passes=30, bound=0.9),
        record("c", area=0.6, holds=False, necessary=True, components=4, passes=20, bound=0.8),
        record("d", area=0.0, holds=True, sufficient=False, components=0, passes=80, bound=0.0),
    ]
    [found] = summarise(records)
    assert (found["photos"], found["empty"]) == (4, 1)
    assert found["holds"] == {"value": 0.75, "photos": 4}
    assert found["sufficient"] == {"value": 0.75, "photos": 4}
    assert found["necessary"] == {"value": 0.25, "photos": 4}
    assert found["minimal"] == {"value": 0.5, "photos": 2}
    assert found["area"]["value"] == pytest.approx(0.15)
    assert found["area_p90"] == pytest.approx(0.2 + 0.7 * 0.4)  # rank 0.9 · 3 = 2.7 of 0 … 3
    assert found["components"]["value"] == 2 and found["passes"]["value"] == 25
    assert found["bound"]["value"] == pytest.approx(0.65)
    assert (found["drop"], found["gain"]) == (0.5, 0.0)


def test_retention_is_pooled_over_trials_and_not_averaged_over_photos():
    retention = [
        {"noise": {"kept": 1, "trials": 1}, "blur": {"kept": 0, "trials": 0}},
        {"noise": {"kept": 0, "trials": 3}},
        {},
    ]
    [found] = summarise([record(str(i), retention=counts) for i, counts in enumerate(retention)])
    assert found["retention"] == {
        "noise": {"kept": 1, "trials": 4, "share": 0.25},
        "blur": {"kept": 0, "trials": 0, "share": None},
    }


def test_what_was_not_measured_is_left_out_and_counted():
    values = [(0.9, 0.3), (None, None), (0.4, 0.1), (float("nan"), 0.5), (0.5, 0.0)]
    for name in LOCALISATIONS:
        records = [
            record(str(i), **{name: value, f"{name}_chance": chance})
            for i, (value, chance) in enumerate(values)
        ]
        found = summarise(records)[0][name]
        assert found["annotated"] == 3
        assert found["value"] == pytest.approx(0.6)
        assert found["chance"] == pytest.approx(0.4 / 3)
        assert found["lift"] == {"value": pytest.approx(3.5), "photos": 2}  # not over a chance of 0
    [bare] = summarise([record("cat")])
    nothing = {"value": None, "lower": None, "upper": None, "photos": 0}
    assert bare["iou"] == {
        "annotated": 0,
        "value": None,
        "chance": None,
        "lift": {"value": None, "photos": 0},
        "versus": nothing,
        "lift_versus": nothing,
    }
    assert bare["insertion"] == bare["deletion"] == bare["minimal"] == {"value": None, "photos": 0}


def controls(specific, leaking, iou):
    """Those of one mask, without what the summary does not read."""
    stability = None if iou is None else {"seeds": 3, "iou": iou, "flagged": iou < 0.5}
    return {
        "specificity": {"holds": specific},
        "leakage": {"flagged": leaking},
        "stability": stability,
        "flags": [],
    }


def test_controls_are_shares_of_the_masks_that_have_them():
    values = [
        controls(True, False, 0.5),
        controls(False, False, None),
        controls(True, True, 0.25),
        None,
    ]
    [found] = summarise([record(str(i), controls=value) for i, value in enumerate(values)])
    assert found["specific"] == {"value": pytest.approx(2 / 3), "photos": 3}
    assert found["leaking"] == {"value": pytest.approx(1 / 3), "photos": 3}
    assert found["stability"] == {"value": 0.375, "photos": 2}


def test_the_randomised_classifier_is_counted_and_averaged_where_there_is_a_number():
    def agreement(holds, area, correlation, iou):
        chance = None if iou is None else 0.25
        numbers = {"rank_correlation": correlation, "iou": iou, "iou_chance": chance}
        return {"holds": holds, "area": area, **numbers}

    values = [agreement(True, 0.0, 0.5, 0.1), agreement(False, 1.0, None, 0.3), None]
    values.append(agreement(True, 0.2, -0.3, None))
    records = [
        record(str(i), randomised=value, sensitivity=i or None) for i, value in enumerate(values)
    ]
    [found] = summarise(records)
    assert found["sensitivity"] == {"value": 2, "photos": 3}
    assert found["randomised"] == {
        "photos": 3,
        "holds": 2,
        "empty": 1,
        "rank_correlation": {"value": pytest.approx(0.1), "photos": 2},
        "iou": {"value": pytest.approx(0.2), "photos": 2},
        "iou_chance": {"value": 0.25, "photos": 2},
    }


# --- against the reference ------------------------------------------------------------------------


def test_photos_that_differ_a_thousandfold_do_not_blur_a_constant_ratio_or_difference():
    rng = np.random.default_rng(0)
    records = []
    for photo, area in enumerate(10 ** rng.uniform(-4, -1, 20)):
        ours = {"area": area, "iou": area, "iou_chance": 0.5}
        theirs = {"area": 2 * area, "iou": area + 0.25, "iou_chance": 0.5}
        records += [record(str(photo), **ours), record(str(photo), "rise", **theirs)]
    rise = by_method(records)["rise"]
    assert rise["area"]["upper"] > 3 * rise["area"]["lower"]
    assert rise["ratio"] == pytest.approx({"value": 2, "lower": 2, "upper": 2, "photos": 20})
    for key, constant in (("versus", 0.25), ("lift_versus", 0.5)):
        ends = dict.fromkeys(("value", "lower", "upper"), constant)
        assert rise["iou"][key] == pytest.approx({**ends, "photos": 20})


def test_a_method_is_compared_on_the_photos_that_both_have():
    areas = {"amx": {"a": 0.1, "b": 0.2, "x": 0.9}, "rise": {"b": 0.6, "a": 0.1, "y": 0.01}}
    records = [
        record(photo, method, area=area)
        for method, photos in areas.items()
        for photo, area in photos.items()
    ]
    rise = by_method(records)["rise"]
    assert rise["photos"] == 3 and rise["area"]["value"] == pytest.approx(0.1)
    assert rise["ratio"]["photos"] == 2
    assert rise["ratio"]["value"] == pytest.approx(0.35 / 0.15)  # of medians; the ratios' is 2
    assert (rise["ratio"]["lower"], rise["ratio"]["upper"]) == pytest.approx((1, 3))


def test_the_ratio_is_that_of_a_loop_over_resampled_photos():
    found = by_method(random_records())["gradcam"]["ratio"]
    area = {(r["image"], r["method"]): r["area"] for r in random_records()}
    shared = sorted(image for image, method in area if method == "amx" and (image, "gradcam") in area)
    ratios = []
    for drawn in np.random.default_rng(0).integers(0, len(shared), (2000, len(shared))):
        ours, theirs = (
            statistics.median(area[shared[i], method] for i in drawn) for method in ("amx", "gradcam")
        )
        ratios.append(theirs / ours)
    assert found["photos"] == len(shared) < 25
    assert [found["lower"], found["upper"]] == pytest.approx(np.quantile(ratios, [0.025, 0.975]))


@pytest.mark.parametrize("seed", range(3))
def test_intervals_agree_with_those_of_scipy(seed):
    records = random_records(seed, photos=80, methods=("amx", "rise"))
    found = by_method(records)["rise"]
    values = {(r["image"], r["method"]): r for r in records}
    images = {image for image, _ in values}

    def shared(key):
        pairs = [
            (values[image, "rise"][key], values[image, "amx"][key])
            for image in images
            if {(image, "rise"), (image, "amx")} <= values.keys()
        ]
        return np.array([pair for pair in pairs if None not in pair]).T

    def interval(samples, statistic):
        result = scipy.stats.bootstrap(
            tuple(samples), statistic, paired=True, method="percentile", rng=np.random.default_rng(1)
        )
        return result.confidence_interval

    def ratio(a, b, axis):
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    def difference(a, b, axis):
        return np.mean(a, axis=axis) - np.mean(b, axis=axis)

    for ours, theirs in (
        (found["ratio"], interval(shared("area"), ratio)),
        (found["energy"]["versus"], interval(shared("energy"), difference)),
    ):
        width = theirs.high - theirs.low
        assert ours["lower"] < ours["value"] < ours["upper"]
        assert [ours["lower"], ours["upper"]] == pytest.approx(list(theirs), abs=0.08 * width)


def test_the_reference_against_itself_is_one_and_nought():
    amx = by_method(random_records())["amx"]
    assert amx["ratio"] == {"value": 1, "lower": 1, "upper": 1, "photos": amx["photos"]}
    assert amx["energy"]["versus"]["lower"] == amx["energy"]["versus"]["upper"] == 0


def test_without_the_reference_nothing_is_compared():
    for summary in summarise([record("cat", "rise"), record("dog", "gradcam")]):
        assert summary["ratio"] == {"value": None, "lower": None, "upper": None, "photos": 0}
        assert summary["energy"]["versus"]["value"] is None


def test_a_reference_that_keeps_nothing_gives_no_ratio():
    records = [record(str(i), area=0.0) for i in range(4)]
    rise = by_method([*records, *(record(str(i), "rise") for i in range(4))])["rise"]
    assert rise["ratio"] == {"value": None, "lower": None, "upper": None, "photos": 4}
    some = [record(str(i), area=area) for i, area in enumerate((0.0, 0.1, 0.2))]
    rise = by_method([*some, *(record(str(i), "rise") for i in range(3))])["rise"]
    assert rise["ratio"]["value"] == 1 and rise["ratio"]["upper"] is None


# --- curves ---------------------------------------------------------------------------------------


def test_a_mean_curve_is_the_median_of_interpolated_curves():
    def curve(*points):
        return {"area": [area for area, _ in points], "retention": [kept for _, kept in points]}

    records = [
        record("a", curve=curve((0.1, 0.0), (0.3, 1.0))),
        record("b", curve=curve((0.4, 1.0), (0.1, 0.4))),  # in any order
        record("c", curve=curve((0.1, 0.9), (0.2, None), (0.2, 0.9))),
        record("d", curve=None),
        record("e", curve=curve()),
        record("a", "rise", curve=curve((0.1, 0.7))),
    ]
    found = mean_curve(records, "amx", np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5]))
    # at 0.2: 0.5, 0.6, 0.9; at 0.3, which c does not reach: 1 and 0.8; at 0.4 b alone
    expected = [np.nan, 0.4, 0.6, 0.9, 1.0, np.nan]
    assert found == pytest.approx(np.array(expected), nan_ok=True)
    assert np.isnan(mean_curve(records, "gradcam", np.array([0.1, 0.2]))).all()


def test_a_curve_of_unequal_lengths_is_refused():
    broken = record("cat", curve={"area": [0.1, 0.2], "retention": [0.1]})
    with pytest.raises(ValueError, match="curve of 'cat'"):
        mean_curve([broken], "amx", np.array([0.1]))
