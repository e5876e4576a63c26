//! AdmissionReview in, AdmissionReview out: pure functions that the server wraps (section M).

use serde_json::{Value, json};

use crate::config::InjectConfig;
use crate::decide::{Decision, Namespace, decide};
use crate::inject::{Context, inject, limit_warnings};
use crate::pod::{at, str_at};
use crate::validate::{Verdict, validate};

/// The body is no review that can be answered: 400, and no `allowed` anywhere (INJ-209).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadReview {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Json(String),
    /// JSON, but no review that this version knows.
    #[error("{field}: must be {expected}")]
    Shape {
        /// Path of the field.
        field: &'static str,
        /// What would be accepted.
        expected: &'static str,
    },
}

/// One review, as far as answering it needs.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    uid: &'a str,
    request: &'a Value,
}

/// An answer, and what the metrics count it as.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The whole AdmissionReview.
    pub review: Value,
    /// What was decided.
    pub outcome: Outcome,
}

/// What was decided about a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// `injected`, or `valid`.
    Success(&'static str),
    /// Nothing to do, for this reason.
    Skipped(&'static str),
    /// Refused, for this reason.
    Failed(&'static str),
}

/// Reads a review's body.
///
/// # Errors
/// [`BadReview`] with what is missing.
pub fn parse(body: &[u8]) -> Result<Value, BadReview> {
    serde_json::from_slice(body).map_err(|error| BadReview::Json(error.to_string()))
}

impl<'a> Request<'a> {
    /// Finds the request in a review.
    ///
    /// # Errors
    /// [`BadReview::Shape`] when there is none, or it is of another version than `admission.k8s.io/v1`.
    pub fn new(review: &'a Value) -> Result<Self, BadReview> {
        let wrong = |field, expected| BadReview::Shape { field, expected };
        if str_at(review, "apiVersion") != Some(API_VERSION) || str_at(review, "kind") != Some("AdmissionReview") {
            return Err(wrong("apiVersion", "admission.k8s.io/v1 with kind AdmissionReview"));
        }
        let request = at(review, "request").filter(|request| request.is_object());
        let request = request.ok_or_else(|| wrong("request", "an object"))?;
        let uid = str_at(request, "uid").filter(|uid| !uid.is_empty());
        Ok(Self {
            uid: uid.ok_or_else(|| wrong("request.uid", "a string"))?,
            request,
        })
    }

    /// The request's uid, which the answer repeats.
    #[must_use]
    pub fn uid(&self) -> &'a str {
        self.uid
    }

    /// `spec.nodeName` of the pod, where it is assigned already (INJ-052).
    #[must_use]
    pub fn node_name(&self) -> Option<&'a str> {
        str_at(self.request, "object.spec.nodeName")
    }

    /// Answers as the injector. `native_supported` is the nodes' answer for this pod.
    #[must_use]
    pub fn inject(&self, config: &InjectConfig, native_supported: bool) -> Answer {
        let pods = str_at(self.request, "kind.kind") == Some("Pod")
            && str_at(self.request, "kind.group").is_none_or(str::is_empty);
        let creates = str_at(self.request, "operation") == Some("CREATE")
            && str_at(self.request, "subResource").is_none_or(str::is_empty);
        let Some(pod) = at(self.request, "object").filter(|_| pods && creates) else {
            return self.allowed(Outcome::Skipped("not_a_new_pod"), Vec::new());
        };
        let namespace = str_at(self.request, "namespace")
            .or_else(|| str_at(pod, "metadata.namespace"))
            .unwrap_or("default");
        match decide(
            Namespace {
                name: namespace,
                labels: None,
            },
            pod,
            config,
        ) {
            Decision::Skip { reason, mut warnings } => {
                if reason.is_surprising() {
                    warnings.insert(0, format!("no sidecar: {reason}"));
                }
                self.allowed(Outcome::Skipped(reason.reason()), warnings)
            }
            Decision::Inject { warnings } => {
                let context = Context {
                    namespace,
                    native_supported,
                    workload: None,
                    warnings,
                };
                match inject(pod, &context, config) {
                    Ok(injected) => {
                        let mut answer = self.allowed(Outcome::Success("injected"), injected.warnings);
                        if !injected.patch.0.is_empty() {
                            let patch = serde_json::to_vec(&injected.patch).expect("a patch always serializes");
                            let response = &mut answer.review["response"];
                            response["patchType"] = json!("JSONPatch");
                            response["patch"] = json!(data_encoding::BASE64.encode(&patch));
                        }
                        answer
                    }
                    Err(refusal) => self.denied(400, refusal.reason(), &refusal.to_string(), Vec::new()),
                }
            }
        }
    }

    /// Answers as the validator (OPS-034).
    #[must_use]
    pub fn validate(&self) -> Answer {
        let deletes = str_at(self.request, "operation") == Some("DELETE");
        // What is being deleted must be able to lose its finalizers.
        let leaves = |object: &Value| at(object, "metadata.deletionTimestamp").is_some();
        let Some(object) = at(self.request, "object").filter(|object| !deletes && !leaves(object)) else {
            return self.allowed(Outcome::Skipped("no_object"), Vec::new());
        };
        match validate(object) {
            Verdict::Unknown => self.allowed(Outcome::Skipped("other_kind"), Vec::new()),
            Verdict::Valid { warnings } => self.allowed(Outcome::Success("valid"), warnings),
            Verdict::Invalid { errors, warnings } => self.denied(422, "invalid", &errors.join("; "), warnings),
        }
    }

    /// The answer when something of ours broke (INJ-210).
    #[must_use]
    pub fn internal_error(&self) -> Answer {
        self.denied(
            500,
            "internal",
            "internal error of the webhook; its log says more",
            Vec::new(),
        )
    }

    fn allowed(&self, outcome: Outcome, warnings: Vec<String>) -> Answer {
        self.answer(outcome, json!({ "allowed": true }), warnings)
    }

    fn denied(&self, code: u16, reason: &'static str, message: &str, warnings: Vec<String>) -> Answer {
        let kind = match code {
            400 => "BadRequest",
            422 => "Invalid",
            _ => "InternalError",
        };
        let status = json!({ "code": code, "message": message, "reason": kind, "status": "Failure" });
        self.answer(
            Outcome::Failed(reason),
            json!({ "allowed": false, "status": status }),
            warnings,
        )
    }

    fn answer(&self, outcome: Outcome, mut response: Value, mut warnings: Vec<String>) -> Answer {
        limit_warnings(&mut warnings);
        response["uid"] = json!(self.uid);
        response["auditAnnotations"] = json!({ "decision": outcome.decision() });
        if !warnings.is_empty() {
            response["warnings"] = json!(warnings);
        }
        let review = json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response });
        Answer { review, outcome }
    }
}

impl Outcome {
    /// The audit annotation (INJ-213).
    fn decision(self) -> String {
        match self {
            Self::Success(what) => what.to_owned(),
            Self::Skipped(reason) => format!("skipped:{reason}"),
            Self::Failed(reason) => format!("refused:{reason}"),
        }
    }
}

/// The patch of a response, decoded: for tests and tools.
///
/// # Errors
/// A line that says what is no patch.
pub fn patch_of(review: &Value) -> Result<Option<json_patch::Patch>, String> {
    let Some(text) = str_at(review, "response.patch") else {
        return Ok(None);
    };
    let bytes = data_encoding::BASE64
        .decode(text.as_bytes())
        .map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// The only version of reviews that is spoken (INJ-200).
const API_VERSION: &str = "admission.k8s.io/v1";

#[cfg(test)]
mod tests;
