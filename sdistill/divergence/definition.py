"""What a divergence between teacher and student is."""

from dataclasses import dataclass
from typing import Literal

from sdistill.settings import require

Support = Literal["full", "topk", "sampled"]
Tail = Literal["bucket", "renormalise"]


@dataclass(frozen=True)
class DivergenceConfig:
    """Divergence between teacher T and student S at a token (SDPO, arXiv 2601.20802, defaults as released).

    Attributes:
      alpha: 0 is KL(T‖S), 1 is KL(S‖T), between them a generalised Jensen-Shannon divergence.
      support: Ids that it is summed over.
      top_k: Size of the `topk` support.
      tail: What `topk` does with the other ids.
      pointwise_clip: Most that one id adds, in nats. None for no limit.
    """

    alpha: float = 0.5
    support: Support = "topk"
    top_k: int | None = 100
    tail: Tail | None = "bucket"
    pointwise_clip: float | None = None

    def __post_init__(self) -> None:
        topk = self.support == "topk"
        require(0 <= self.alpha <= 1, f"alpha={self.alpha} must be 0 to 1")
        require(
            topk == (self.top_k is not None), f"top_k={self.top_k} goes with support='topk' and only with it"
        )
        require(
            topk == (self.tail is not None), f"tail={self.tail!r} goes with support='topk' and only with it"
        )
        require(self.top_k is None or self.top_k > 0, f"top_k={self.top_k} must be positive")
        sampled, clip = self.support == "sampled", self.pointwise_clip
        require(
            not sampled or self.alpha == 1,
            f"alpha={self.alpha}: support='sampled' estimates KL(S‖T), alpha=1, only",
        )
        require(clip is None or clip > 0, f"pointwise_clip={clip} must be positive, or None")
        require(
            not sampled or clip is None,
            f"pointwise_clip={clip}: support='sampled' has no sum over ids to clip; use another",
        )
