"""API keys, for admins: make, list, revoke."""

from typing import Annotated

from fastapi import APIRouter, Path
from starlette.responses import Response

from serve.routes.answers import Limit, Offset, Service, problems, reply
from serve.schemas import Key, KeyRequest, NewKey, Page, key_of, new_key_of

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])


@router.post("", status_code=201, response_model=NewKey, summary="Make an API key", responses=problems())
async def make(parts: Service, body: KeyRequest) -> Response:
    """Make an API key. The answer holds it; nobody can tell it again."""
    made = await parts.keys.make(body.name, body.role, lifetime=body.expires_in)
    return reply(new_key_of(made.entry, made.key), 201)


@router.get("", response_model=Page[Key], summary="List API keys", responses=problems())
async def find(parts: Service, offset: Offset = 0, limit: Limit = 20) -> Response:
    """List API keys, oldest first, also those that open nothing any more."""
    found = await parts.keys.known()
    return reply(Page(total=len(found), offset=offset, limit=limit, items=[key_of(each) for each in found[offset : offset + limit]]))


@router.delete("/{key_id}", response_model=Key, summary="Revoke an API key", responses=problems(404))
async def revoke(parts: Service, key_id: Annotated[str, Path(max_length=100)]) -> Response:
    """Make an API key open nothing any more, for good; other replicas know of it within 2 seconds."""
    return reply(key_of(await parts.keys.revoke(key_id)))
