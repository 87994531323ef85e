"""A text tower that begins as a bag of tokens: what a linear model of token counts predicts, written into its weights.

The first dimensions of the residual stream hold content, each token's weight vector; the others hold ballast, which
fills every embedding up to the same length and to a mean of zero. So LayerNorm leaves content as it is, and ballast
tells tokens apart that weigh alike. The first block's attention looks at all tokens alike and adds their mean content
to the end-of-text token, from where the projection reads it. Whatever else adds to the stream begins at nothing. A
mean differs from a sum by a factor, which normalising takes away.

V tokens of the vocabulary, W width, D features, C dimensions of content.
"""

import math

import torch
from open_clip.transformer import TextTransformer
from torch import Tensor

from .errors import EncoderError

BALLAST = 8  # one part in so many of the width, and at least three dimensions, is kept free of content
GAIN = 4.0  # of the mean content, so that it is about as large as the ballast of the end-of-text token


@torch.no_grad()
def init_from_bag(
    text: TextTransformer, weights: Tensor, bias: Tensor, *, pad_id: int, bos_id: int, eos_id: int
) -> None:
    """Make a tower give the sum of its caption's token weights, and a bias, as its features, up to a positive factor.

    Exact where the width has room for D features and ballast; a narrower tower keeps the directions in which weights
    differ most. Positions begin at zero. What exactness leaves free is random.

    Args:
        text: overwritten, on any device.
        weights: `[V, D]`; those of the three tokens below are not used.
        bias: `[D]`, of every caption.
        pad_id: token that fills captions.
        bos_id: token that begins every caption, and so carries the bias.
        eos_id: token that ends every caption.

    Raises:
        EncoderError: the weights are of another vocabulary or dimension, or the tower has no room for any.
    """
    vocab_size, width = text.token_embedding.weight.shape
    expected = vocab_size, text.text_projection.shape[1]
    if tuple(weights.shape) != expected:
        raise EncoderError(f"token weights {tuple(weights.shape)} do not fit a text tower of {expected}: fit them anew")
    num_content = min(expected[1], width - max(3, width // BALLAST))
    if num_content < 1:
        raise EncoderError(f"--width {width} has no room for a warm start: use --width 8 or more")
    weights = weights.detach().cpu().double().clone()
    weights[[pad_id, eos_id]] = 0.0
    weights[bos_id] = bias.detach().cpu().double()
    kept = torch.linalg.eigh(weights.T @ weights).eigenvectors[:, -num_content:]  # [D, C]

    text.token_embedding.weight.copy_(_with_ballast(weights @ kept, width))
    text.positional_embedding.zero_()
    text.text_projection.zero_()
    text.text_projection[:num_content] = kept.T.to(text.text_projection)
    first = text.transformer.resblocks[0].attn
    for block in text.transformer.resblocks:
        for silent in (block.attn.out_proj, block.mlp.c_proj):
            silent.weight.zero_()
            silent.bias.zero_()
    # Queries of zero look at all alike; keys stay random, or neither would ever get a gradient.
    first.in_proj_weight[:width] = 0.0
    first.in_proj_weight[2 * width :] = 0.0
    first.in_proj_bias.zero_()
    content = torch.arange(num_content)
    first.in_proj_weight[2 * width + content, content] = 1.0
    first.out_proj.weight[content, content] = GAIN
    first.out_proj.weight[num_content:, :num_content] = -GAIN / (width - num_content)  # keeps the mean at zero


def _with_ballast(content: Tensor, width: int) -> Tensor:
    """Embeddings `[V, W]` with mean 0 and variance 1 that begin with content `[V, C]`, all of it scaled alike."""
    num_ballast = width - content.shape[1]
    level = -content.sum(1, keepdim=True) / num_ballast
    filled = content.square().sum(1, keepdim=True) + num_ballast * level.square()
    largest = filled.max().clamp(min=torch.finfo(content.dtype).tiny)
    other = torch.randn(len(content), num_ballast, dtype=content.dtype)
    other -= other.mean(1, keepdim=True)
    other *= (largest - filled).clamp(min=0).sqrt() / other.norm(dim=1, keepdim=True)
    return torch.cat([content, level + other], dim=1) * (math.sqrt(width) / largest.sqrt())
