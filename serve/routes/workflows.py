"""Workflows that the operator registered: list, get, graph."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from starlette.responses import PlainTextResponse, Response

from serve.routes.answers import Limit, Offset, Search, Service, problems, reply
from serve.schemas import LONGEST_NAME, Graph, Page, Workflow, WorkflowDetail, workflow_of
from serve.service import mermaid_of

router = APIRouter(prefix="/api/v1/workflows", tags=["workflows"])

WorkflowId = Annotated[str, Path(max_length=LONGEST_NAME, description="The name of a workflow.", examples=["audit"])]


@router.get("", response_model=Page[Workflow], summary="List workflows", responses=problems())
async def find(
    parts: Service,
    search: Search = "",
    type: Annotated[Literal["dag", "state_machine"] | None, Query()] = None,
    is_active: Annotated[bool | None, Query()] = None,
    offset: Offset = 0,
    limit: Limit = 20,
) -> Response:
    """List the workflows that may be executed, by name."""
    found = parts.registry.find(search=search, type=type, is_active=is_active)
    items = [workflow_of(each) for each in found[offset : offset + limit]]
    return reply(Page(total=len(found), offset=offset, limit=limit, items=items))


@router.get("/{workflow_id}", response_model=WorkflowDetail, summary="Get a workflow", responses=problems(404))
async def get(parts: Service, workflow_id: WorkflowId) -> Response:
    """Return a workflow with its nodes and edges."""
    return reply(workflow_of(parts.registry.get(workflow_id), WorkflowDetail))


@router.get(
    "/{workflow_id}/graph", response_model=Graph, summary="Get the graph of a workflow",
    responses=problems(404) | {200: {"description": "JSON or Mermaid.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)  # fmt: skip
async def graph(parts: Service, workflow_id: WorkflowId, format: Annotated[Literal["json", "mermaid"], Query()] = "json") -> Response:
    """Return the graph of a workflow, for programs or as a picture."""
    found = parts.registry.get(workflow_id)
    return PlainTextResponse(mermaid_of(found.flow)) if format == "mermaid" else reply(Graph(**found.graph()))
