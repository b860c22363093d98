"""Metrics for Prometheus."""

from litestar import Response, get
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from app.describing import Answer, describe
from app.metrics import Reading, render_metrics
from outbox.engine import Engine


@get("/metrics", opt=describe(answers={200: Answer(str, CONTENT_TYPE_PLAIN_0_0_4)}))
async def get_metrics(engine: Engine) -> Response[bytes]:
    """Show the numbers and how the service is, in Prometheus's text format."""
    stats = await engine.inspector.stats()
    reading = Reading(stats, engine.vitals, ready=not engine.troubles, now_ms=engine.now_ms())
    return Response(render_metrics(reading), media_type=CONTENT_TYPE_PLAIN_0_0_4)
