"use strict";

// Deferred scripts run in the order of the page, so the bundle is there already.
window.SwaggerUIBundle({
  dom_id: "#docs",
  url: "/openapi.json",
  deepLinking: true,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  // A key typed into "Authorize" lives in this page's memory and nowhere else.
  persistAuthorization: false,
  // Its default is a badge from validator.swagger.io, which would learn the address of this service.
  validatorUrl: null,
  // The address of the document is fixed: a link with ?url= cannot make this page show another API as ours.
  queryConfigEnabled: false,
});
