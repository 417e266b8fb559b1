import json

from pipeline.reporting.html_page import safe_json

HOSTILE = "</script><img src=x onerror=alert(1)><!-- & \u2028 \u202e \ud800"


def test_json_for_a_page_is_ascii_without_brackets() -> None:
    content = {"a": HOSTILE, "b": [1.5, None, "é\u2029"]}
    made = safe_json(content)
    assert made.isascii()
    assert not set(made) & set(b"<>&")
    assert json.loads(made) == content
