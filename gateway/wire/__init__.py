"""The wire, sans IO: bytes in, facts out. No asyncio, no clock, no logging, no sockets; stdlib and msgspec only."""
