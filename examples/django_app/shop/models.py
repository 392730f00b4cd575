"""What is bought."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """One order."""

    cents = models.PositiveIntegerField()

    class Meta:
        """Where it belongs."""

        app_label = "shop"

    def __str__(self) -> str:
        """Return what it cost."""
        return f"{self.cents} cents"
