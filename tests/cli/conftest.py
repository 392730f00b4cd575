from tests.system.conftest import stack

__all__ = ["stack"]
