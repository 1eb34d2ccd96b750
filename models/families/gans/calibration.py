"""What a discriminator's logit means once training is over: a logistic regression of real against generated on it."""

import torch
from torch import Tensor


def log_odds(real: Tensor, fake: Tensor, rounds: int = 30) -> Tensor:
    """(2,) scale and shift that turn logits into log-odds of being real, at even odds a priori (Platt 1999).

    The scale is never negative: a discriminator that cannot tell answers even odds.
    """
    logits = torch.cat([real, fake]).double()
    wanted = torch.cat([torch.ones(len(real)), torch.zeros(len(fake))]).to(logits)
    weight = 0.5 / torch.where(wanted == 1, len(real), len(fake))
    centre, spread = logits.mean(), logits.std(unbiased=False).clamp(min=1e-6)
    inputs = torch.stack([(logits - centre) / spread, torch.ones_like(logits)], 1)
    theta = torch.zeros(2).to(logits)
    ridge = 1e-3 * torch.eye(2).to(logits)  # keeps separable logits finite
    for _ in range(rounds):  # Newton
        odds = (inputs @ theta).sigmoid()
        slope = inputs.T @ (weight * (odds - wanted)) + ridge @ theta
        bend = (inputs * (weight * odds * (1 - odds))[:, None]).T @ inputs + ridge
        theta = theta - torch.linalg.solve(bend, slope)
    scale = (theta[0] / spread).clamp(min=0)
    return torch.stack([scale, theta[1] - scale * centre]).float()


def agreement(real: Tensor, fake: Tensor) -> float:
    """Share of images on the right side of even odds, both kinds weighing the same."""
    return float(((real > 0).double().mean() + (fake <= 0).double().mean()) / 2)
