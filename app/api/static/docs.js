// Starts Swagger UI on this service's own description; nothing is asked of anybody else.
window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "v1/openapi.json",
    dom_id: "#docs",
    deepLinking: true,
    docExpansion: "list",
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    tryItOutEnabled: true,
    validatorUrl: null,
  });
});
