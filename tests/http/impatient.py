"""The service with its patience cut to a tenth: tests of slow clients need not wait for the shipped seconds."""

from app import protocol
from app.__main__ import main

PATIENCE_S = 1.0

if __name__ == "__main__":
    protocol.HEAD_S = protocol.BODY_PAUSE_S = PATIENCE_S
    protocol.LOOK_EVERY_S = PATIENCE_S / 10
    main()
