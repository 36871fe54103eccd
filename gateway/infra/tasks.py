"""Background tasks that are kept alive, named, and never fail in silence: the only caller of `create_task`."""

import asyncio
import logging
from collections.abc import Coroutine

log = logging.getLogger(__name__)


class TaskGroup:
    """Holds a reference to every task it spawned until that task ends, and logs what none awaited.

    `close()` cancels what is left and waits for it; a closed group refuses new work.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def spawn(self, work: Coroutine[object, object, None], *, name: str) -> asyncio.Task[None]:
        """Start `work` now; its failure is logged under `name`."""
        if self._closed:
            work.close()
            raise RuntimeError(f"task group is closed, cannot start {name}")
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task %s failed", task.get_name(), exc_info=error)

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel every task and wait until each has ended."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
