from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnifarm.cli.demo_page import write_page


@pytest.fixture
def summary(tmp_path: Path) -> dict[str, Any]:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return {
        "backbone": "miniature",
        "hardware": "2 cores",
        "commit": "abc",
        "created": "today",
        "timings": {"train_s": 12.0},
        "totals": {"answers right": "1 of 2"},
        "concepts": [
            {
                "identifier": "<maeve>",
                "class_noun": "dog",
                "info": "<maeve> is a dog & more.",
                "extra_info": ["<maeve>'s home is by the sea."],
                "steps": 10,
                "train_s": 12.0,
                "photos": ["a.png"],
                "losses": {"text": [[0, 2.0], [10, 1.0]]},
                "answers": [
                    {
                        "kind": "recognition",
                        "question": "Is <maeve> in the photo?",
                        "image": "a.png",
                        "answer": "Yes.",
                        "expected": "Yes.",
                        "correct": True,
                        "seconds": 0.1,
                    }
                ],
                "drawings": [
                    {
                        "prompt": "A photo of <maeve> at home.",
                        "image": "a.png",
                        "replay": {
                            "status": "used",
                            "question": "Where?",
                            "answer": "The sea.",
                            "prompt": "by the sea",
                        },
                        "seconds": 1.0,
                    }
                ],
                "edits": [
                    {
                        "instruction": "remove <maeve>",
                        "before": "a.png",
                        "after": "a.png",
                        "truth": None,
                        "seconds": 1.0,
                    }
                ],
            }
        ],
    }


def test_the_page_is_one_file_and_escapes_what_it_shows(summary: dict[str, Any], tmp_path: Path) -> None:
    page = write_page(summary, folder=tmp_path).read_text()
    assert "&lt;maeve&gt; is a dog &amp; more." in page
    assert "<maeve>" not in page
    assert page.count("data:image/png;base64,") == 6
    assert "http" not in page.replace("http-equiv", "")
    assert "asked itself: Where?" in page


def test_a_missing_picture_is_an_error_not_a_gap(summary: dict[str, Any], tmp_path: Path) -> None:
    summary["concepts"][0]["drawings"][0]["image"] = "gone.png"
    with pytest.raises(FileNotFoundError):
        write_page(summary, folder=tmp_path)
