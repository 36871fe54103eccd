"""What can be called here and what it costs, for anybody to read: the face of the module."""

from typing import Final

from gateway.control.catalogue import models
from gateway.control.route import Route

ROUTES: Final[tuple[Route, ...]] = models.ROUTES
