//! `/admin/v1`: what operators see of the cluster and change in it.
//!
//! A request passes here from top to bottom: path, method, key, body, handler. Handlers judge rights, since those
//! depend on whose a thing is.

use super::access::bearer;
use super::control::Control;
use super::endpoint::Endpoint;
use super::error::ApiError;
use super::http::{Answer, Call, Precondition, Query, read};
use super::{budgets, keys, members, openapi, resources};
use actors::ingress::connection::{RequestId, X_REQUEST_ID};
use bytes::Bytes;
use cluster::directory::kind::Kind;
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Body;
use std::error::Error;
use std::sync::Arc;
use tracing::{info, warn};

#[derive(Clone)]
pub struct Api {
    control: Arc<dyn Control>,
}

impl Api {
    pub fn new(control: Arc<dyn Control>) -> Self {
        Self { control }
    }

    /// The answer, and the path with its names left out.
    pub async fn answer<B>(&self, request: Request<B>) -> (&'static str, Response<Full<Bytes>>)
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let request_id = RequestId::of(request.headers());
        let endpoint = Endpoint::parse(request.uri().path());
        let template = endpoint.as_ref().map_or("/admin/v1", Endpoint::template);
        let answered = match endpoint {
            Some(endpoint) => {
                let about = endpoint.clone();
                let answered = self.reply(endpoint, request, request_id.clone()).await;
                answered.map_err(|error| error.about(|| about.subject()))
            }
            None => Err(ApiError::NoPath),
        };
        let mut response = match answered {
            Ok(answer) => answer.response(),
            Err(error) => error.response(request_id.as_str()),
        };
        response.headers_mut().insert(X_REQUEST_ID, request_id.header());
        (template, response)
    }

    async fn reply<B>(&self, endpoint: Endpoint, request: Request<B>, request_id: RequestId) -> Result<Answer, ApiError>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        if !endpoint.allows(request.method()) {
            return Err(refused(&endpoint, request.method()));
        }
        // What the API looks like is no secret.
        if endpoint == Endpoint::OpenApi {
            return Ok(Answer::ok(openapi::document()));
        }
        let (head, body) = request.into_parts();
        let operator = self.control.authenticate(bearer(&head.headers).ok_or(ApiError::NoKey)?)?;
        let query = Query::parse(head.uri.query().unwrap_or_default())?;
        let precondition = Precondition::of(&head.headers)?;
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        let body = if reads { Bytes::new() } else { read(body).await? };
        let call = Call { method: head.method, operator, request_id, query, precondition, body };
        if reads {
            return self.read(&endpoint, &call).await;
        }
        let template = endpoint.template();
        let changed = self.change(endpoint, &call).await;
        let (operator, request_id, method) = (&call.operator.name, &call.request_id, &call.method);
        match &changed {
            Ok(_) => info!(%operator, %request_id, %method, path = template, "changed through the admin API"),
            Err(error) => {
                warn!(%operator, %request_id, %method, path = template, %error, "not changed through the admin API");
            }
        }
        changed
    }

    async fn read(&self, endpoint: &Endpoint, call: &Call) -> Result<Answer, ApiError> {
        let control = &*self.control;
        match endpoint {
            Endpoint::List(kind) => resources::list(control, call, *kind),
            Endpoint::Item { kind, name } => resources::get(control, call, *kind, name),
            Endpoint::Teams { tenant } => resources::teams(control, call, tenant),
            Endpoint::Team { tenant, name } => resources::team(control, call, tenant, name),
            Endpoint::Members => members::list(control, call),
            Endpoint::Audit => members::audit(control, call),
            Endpoint::Cluster => members::cluster(control, call),
            Endpoint::OpenApi => Ok(Answer::ok(openapi::document())),
            Endpoint::Standings => budgets::standings(control, call).await,
            Endpoint::Standing { budget } => budgets::standing(control, call, budget.clone()).await,
            // Refused by its method before.
            Endpoint::Revoke { .. }
            | Endpoint::Switch { .. }
            | Endpoint::Drain { .. }
            | Endpoint::Remove { .. }
            | Endpoint::Reconcile { .. } => Err(refused(endpoint, &call.method)),
        }
    }

    async fn change(&self, endpoint: Endpoint, call: &Call) -> Result<Answer, ApiError> {
        let control = &*self.control;
        let deletes = call.method == Method::DELETE;
        match endpoint {
            Endpoint::List(Kind::Keys) => keys::create(control, call).await,
            Endpoint::Item { kind, name } if deletes => resources::delete(control, call, kind, name).await,
            Endpoint::Item { kind, name } => resources::put(control, call, kind, name).await,
            Endpoint::Team { tenant, name } => {
                let spec = if deletes { None } else { Some(call.object()?) };
                resources::change_team(control, call, tenant, name, spec).await
            }
            Endpoint::Revoke { key } => keys::revoke(control, call, key).await,
            Endpoint::Switch { provider, off } => resources::switch(control, call, provider, off).await,
            Endpoint::Drain { node } => members::drain(control, call, node).await,
            Endpoint::Remove { node } => members::remove(control, call, node).await,
            Endpoint::Reconcile { budget } => budgets::reconcile(control, call, budget).await,
            // Refused by its method before.
            Endpoint::List(_)
            | Endpoint::Teams { .. }
            | Endpoint::Members
            | Endpoint::Audit
            | Endpoint::Cluster
            | Endpoint::Standings
            | Endpoint::Standing { .. }
            | Endpoint::OpenApi => Err(refused(&endpoint, &call.method)),
        }
    }
}

fn refused(endpoint: &Endpoint, method: &Method) -> ApiError {
    ApiError::Method { allow: endpoint.allowed(), hint: endpoint.hint(method) }
}

#[cfg(test)]
mod tests;
