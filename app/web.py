"""The WSGI application: registers blueprints and the edge, nothing else."""

from werkzeug.middleware.proxy_fix import ProxyFix

from app.api_keys.routes import api_keys, authenticate, note_use
from app.audit.routes import audit_log
from app.core.doorbell import BackgroundDoorbell, CeleryDoorbell
from app.core.unit_of_work import Resources, open_resources
from app.deliveries.routes import deliveries
from app.endpoints.routes import endpoints
from app.events.catalogue import BUILT_IN
from app.events.routes import event_types, events
from app.rest import context, edge, openapi
from app.rest.meta import meta
from app.rest.system import system
from config.settings import load_settings

VERSION = "1.0.0"


def create_app(resources: Resources | None = None) -> edge.Application:
    """Make the application; without `resources` it opens those that the environment configures."""
    if resources is None:
        settings = load_settings()
        resources = open_resources(settings, doorbell=BackgroundDoorbell(CeleryDoorbell(settings)))
    app = edge.Application("app", static_folder="static", static_url_path="/static")
    app.extensions[context.EXTENSION] = resources
    app.url_map.strict_slashes = False
    if proxies := resources.settings.trusted_proxies:
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=proxies)  # type: ignore[method-assign]
    edge.install(app, authenticate=authenticate, note_use=note_use)
    webhooks = {
        name: openapi.webhook(name, entry.description, entry.schema, entry.example)
        for name, entry in BUILT_IN.items()
    }
    api = openapi.install(app, webhooks, VERSION)
    for blueprint in (api_keys, events, event_types, endpoints, deliveries, audit_log, meta):
        api.register_blueprint(blueprint)
    app.register_blueprint(system)
    return app
