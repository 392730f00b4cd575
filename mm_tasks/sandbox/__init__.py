"""A runnable stand-in of the vendor's API, strict in every rule of its reference.

Written from the vendor's page alone: it imports nothing else of this package,
so that it cannot repeat our mistakes. It keeps all requests in memory and
shows them under `/_sandbox/`. It is for tests, demos and development.

    server ─▶ control (`/_sandbox/`: page, journal, faults …)
       └────▶ api (`/v1/`) ─▶ access · quota · rules · store · reports · faults · wire
"""
