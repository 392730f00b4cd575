"""Orders of the shop."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """One order."""

    cents = models.PositiveIntegerField()

    class Meta:
        """The app of the model."""

        app_label = "shop"

    def __str__(self) -> str:
        """Return the price."""
        return f"{self.cents} cents"
