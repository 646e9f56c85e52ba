"""Celery's broker over Redis, with leases: kombu's wire format, nothing lost between taking and recording."""

from .transport import SentinelTransport, SocketTransport, Transport

__all__ = ["SentinelTransport", "SocketTransport", "Transport"]
