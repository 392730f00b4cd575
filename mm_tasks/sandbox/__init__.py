"""A runnable stand-in of the vendor's API, strict in every point its reference names.

Written from the vendor's page alone: it imports nothing else of this package,
so that it cannot agree with our mistakes. It keeps what arrives in memory and
shows it under `/_sandbox/`. It is for tests, demos and development.

    server ─▶ control (`/_sandbox/`: page, journal, faults …)
       └────▶ api (`/v1/`) ─▶ access · quota · rules · store · reports · faults · wire
"""
