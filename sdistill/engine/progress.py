"""A progress bar for generations."""

from collections.abc import Callable

from rich.progress import Progress, TaskID

from sdistill.engine.types import EngineStats


def follow(progress: Progress, bar: TaskID, name: str) -> Callable[[EngineStats], None]:
    """Shows responses, tokens a second, how busy the slots are, and failures; rich adds the time left."""

    def show(usage: EngineStats) -> None:
        rate = usage.tokens / max(usage.seconds, 1e-9)
        failed = f", {usage.errors} failed" if usage.errors else ""
        text = f"{name}: {rate:.0f} tokens/s, {usage.occupancy:.0%} of slots busy{failed}"
        progress.update(bar, total=usage.total, completed=usage.responses, description=text)

    return show
