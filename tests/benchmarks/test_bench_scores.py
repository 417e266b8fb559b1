import json
from pathlib import Path

import pytest

from benchmarks.bench_scores import main, with_mistakes
from pipeline.evaluation.java import find_java


def test_mistakes_are_the_same_each_time_and_change_the_captions() -> None:
    captions = ["a dog on a sofa", "two cats asleep"]
    made = with_mistakes(captions, 50)
    assert made == with_mistakes(captions, 50)
    assert sum(text in captions for text in made) < 10


@pytest.mark.full
@pytest.mark.skipif(find_java() is None, reason="there is no Java here")
def test_the_report_has_agreement_and_times(tmp_path: Path) -> None:
    annotations = [{"image_id": i // 2, "caption": f"a dog number {i} runs."} for i in range(10)]
    (tmp_path / "c.json").write_text(json.dumps({"annotations": annotations}))
    report = main(["--captions", str(tmp_path / "c.json"), "--mistakes", "30", "--out", str(tmp_path)])
    assert report["agreement"][0]["built in"] == 0
    assert report["seconds"]["METEOR"] > 0
    assert any(path.suffix == ".md" for path in tmp_path.iterdir())
