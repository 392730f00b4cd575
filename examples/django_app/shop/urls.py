"""The pages."""

from __future__ import annotations

from django.urls import path

from shop import views

urlpatterns = [
    path("pricing", views.pricing),
    path("apricing", views.apricing),
    path("buy", views.buy),
    path("export", views.export),
    path("healthz", views.healthz),
]
