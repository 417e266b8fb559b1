import pytest
import torch
from torch import nn

from model.projection import BiasCorrectedBatchNorm1d, Projection


def test_evaluation_statistics_are_right_after_a_few_steps() -> None:
    torch.manual_seed(0)
    norm = BiasCorrectedBatchNorm1d(4, momentum=0.01)
    plain = nn.BatchNorm1d(4, momentum=0.01)
    batches = [5.0 + 3.0 * torch.randn(256, 4) for _ in range(3)]
    for batch in batches:
        norm(batch)
        plain(batch)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert plain.running_mean is not None
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), rtol=0.02, atol=0)
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0), rtol=0.02, atol=0)
    assert (plain.running_mean < 0.5).all()


def test_the_bias_correction_equals_adams_computed_by_hand() -> None:
    norm = BiasCorrectedBatchNorm1d(1, momentum=0.1)
    total = 0.0
    for step, value in enumerate((1.0, 2.0, 4.0), 1):
        norm(torch.tensor([[value - 1], [value + 1]]))
        total = 0.9 * total + 0.1 * value
        assert norm.running_mean is not None
        assert norm.running_mean.item() == pytest.approx(total / (1 - 0.9**step), rel=1e-5)


def test_feature_dropout_drops_features_only_in_training() -> None:
    torch.manual_seed(0)
    projection = Projection(1000, 4, dropout=0.4)
    features, seen = torch.rand(64, 1, 1000) + 0.5, []
    projection.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    projection(features)
    projection.eval()(features)
    _, trained, evaluated = seen  # the first pass is for the running averages
    left = trained != 0
    assert float(left.float().mean()) == pytest.approx(0.6, abs=0.01)
    torch.testing.assert_close(trained[left], features.squeeze(1)[left] / 0.6)
    assert torch.equal(evaluated, features.squeeze(1))


def test_the_running_averages_are_computed_without_feature_dropout() -> None:
    torch.manual_seed(0)
    features = torch.rand(64, 1, 100)
    projection = Projection(100, 4, dropout=0.5)
    trained = projection(features).squeeze(1)
    complete = projection.linear(features.squeeze(1))
    assert projection.norm.running_mean is not None and projection.norm.running_var is not None
    torch.testing.assert_close(projection.norm.running_mean, complete.mean(0))
    torch.testing.assert_close(projection.norm.running_var, complete.var(0))
    # In training the output with dropout is normalized: mean 0 and variance 1 over the batch.
    torch.testing.assert_close(trained.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.var(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(projection.eval()(features).squeeze(1), (complete - complete.mean(0)) / (complete.var(0) + 1e-5).sqrt())
    assert int(projection.norm.num_batches_tracked or 0) == 1


def test_a_single_image_has_features_in_eval_mode() -> None:
    projection = Projection(8, 4).eval()
    assert projection(torch.randn(1, 1, 8)).abs().sum() > 0
