//! `GET /v1/models`: what a key may use, in the shape of the dialect asked.

use bytes::Bytes;
use cluster::directory::ListedModel;
use llm::dialect::Dialect;
use serde_json::{Value, json};

/// The whole list.
pub fn list(dialect: Dialect, models: &[ListedModel]) -> Bytes {
    let data: Vec<Value> = models.iter().map(|model| one(dialect, model)).collect();
    let body = match dialect {
        Dialect::OpenAiChat => json!({ "object": "list", "data": data }),
        Dialect::AnthropicMessages => json!({
            "data": data,
            "has_more": false,
            "first_id": models.first().map(|model| &model.id),
            "last_id": models.last().map(|model| &model.id),
        }),
    };
    Bytes::from(body.to_string())
}

/// One model.
pub fn single(dialect: Dialect, model: &ListedModel) -> Bytes {
    Bytes::from(one(dialect, model).to_string())
}

fn one(dialect: Dialect, model: &ListedModel) -> Value {
    match dialect {
        Dialect::OpenAiChat => {
            json!({ "id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by })
        }
        Dialect::AnthropicMessages => {
            let created = std::time::UNIX_EPOCH + std::time::Duration::from_secs(model.created);
            let created = humantime::format_rfc3339_seconds(created).to_string();
            json!({ "type": "model", "id": model.id, "display_name": model.id, "created_at": created })
        }
    }
}
