from pipeline.reporting.page_content import label


def test_an_unknown_score_is_shown_under_its_own_name() -> None:
    assert label("rouge_l") == "ROUGE-L"
    assert label("word_error_rate") == "word error rate"
