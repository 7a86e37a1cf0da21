"""Going on with responses that have begun: for any model, chat and task."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flax import nnx

from sdistill.engine.sampling import Sampling
from sdistill.engine.types import Engine, EngineStats, Request
from sdistill.evaluate import described
from sdistill.tasks.problem import Problem, Task
from sdistill.text.chat import Chat
from sdistill.types import Response


@dataclass(frozen=True)
class Begun:
    """A response to go on with.

    Attributes:
      problem: What it responds to.
      sample: Which response it is, part of the name of its random stream.
      text: What it says so far; empty if it is yet to begin.
    """

    problem: Problem
    sample: int
    text: str = ""


def requests_to_go_on(
    begun: Sequence[Begun], chat: Chat, limit: int, *, thinking: bool = True
) -> list[tuple[list[int], Request]]:
    """What has been said, in tokens, and the request that goes on: its prompt is the prompt and that.

    A response of at most `limit` tokens, or one more than it has.
    """
    found = []
    for one in begun:
        said = chat.tokenizer.encode(one.text) if one.text else []
        prompt = [*chat.prompt(one.problem.messages, thinking=thinking), *said]
        left = max(1, limit - len(said))
        found.append((said, Request(prompt, one.problem.id, one.sample, Sampling(), left)))
    return found


def go_on(
    engine: Engine,
    params: nnx.State,
    begun: Sequence[Begun],
    *,
    chat: Chat,
    task: Task,
    limit: int,
    seed: int,
    step: int,
    forbidden: Sequence[int] = (),
    thinking: bool = True,
    progress: Callable[[EngineStats], None] | None = None,
) -> list[Response]:
    """Samples how each goes on, at temperature 1, and judges the whole responses.

    Args:
      engine: With room for the longest prompt that `requests_to_go_on` makes.
      params: The model's.
      begun: In the order of what is returned.
      chat: How the model is spoken to.
      task: What judges.
      limit: Tokens of a whole response, at most.
      seed: Of all random streams.
      step: Another part of them; the same for arms that are compared, so that chance takes less part in it.
      forbidden: Token ids that are not drawn.
      thinking: Whether the prompt asks for thinking.
      progress: Called again and again.
    """
    asked = requests_to_go_on(begun, chat, limit, thinking=thinking)
    requests = [request for _, request in asked]
    rollouts = engine.generate(params, requests, seed=seed, step=step, forbidden=forbidden, progress=progress)
    whole = [
        [*said, *ids[:length].tolist()]
        for (said, _), ids, length in zip(asked, rollouts.ids, rollouts.lengths, strict=True)
    ]
    texts = [chat.tokenizer.decode(ids) for ids in whole]
    verdicts = task.verify_all([(one.problem, text) for one, text in zip(begun, texts, strict=True)])
    return [
        described(one.problem, request, text, len(ids), int(finish), chat, verdict)
        for one, request, text, ids, finish, verdict in zip(
            begun, requests, texts, whole, rollouts.finish, verdicts, strict=True
        )
    ]
