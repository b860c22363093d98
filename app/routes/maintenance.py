"""Looking after the database while the service has it: rebuild, prune."""

from typing import Any

from litestar import Request, get, post

from app.describing import JSON, Answer, describe
from app.prune_schemas import PruneIn, PruneOut, show_pruning
from app.routes.bodies import read_struct
from outbox.domain.errors import NotFoundError
from outbox.engine import Engine


@post("/maintenance/rebuild", status_code=200)
async def rebuild(engine: Engine) -> dict[str, int]:
    """Throw the projections away and fold them again from the log."""
    return {"records": await engine.rebuild()}


@post(
    "/maintenance/prune",
    status_code=202,
    opt=describe(
        bodies={JSON: (PruneIn,)},
        answers={202: Answer(PruneOut, description="begun: it goes on by itself")},
        problems=(409,),
    ),
)
async def prune(request: Request[Any, Any, Any], engine: Engine) -> PruneOut:
    """Take away what is older than that, but for what still lives: nothing that is not settled goes."""
    asked = await read_struct(request, PruneIn)
    return show_pruning(engine.pruner.begin(round(asked.older_than_s * 1000)))


@get("/maintenance/prune", opt=describe(problems=(404,)))
async def get_prune(engine: Engine) -> PruneOut:
    """Show how far a prune has come, or the last one since the start."""
    if engine.pruner.last is None:
        msg = "nothing was pruned since the start"
        raise NotFoundError(msg)
    return show_pruning(engine.pruner.last)
