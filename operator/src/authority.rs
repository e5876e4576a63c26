//! Which certificate authority is in force: `cacerts` where it exists, else the operator's own, made once (ID-039,
//! ID-040).

use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::identity::{Authority, IdentityError};
use crate::source::{PLUGGED_IN, SELF_SIGNED};

/// Secrets that hold authorities, and the authority in force.
#[derive(Debug, Default)]
pub struct Authorities {
    plugged_in: Option<Arc<Secret>>,
    self_signed: Option<Arc<Secret>>,
    current: Option<Arc<Authority>>,
    problem: Option<String>,
}

/// What follows from the Secrets.
#[derive(Debug)]
pub enum Step {
    /// This one signs.
    Use(Arc<Authority>),
    /// There is none yet: this Secret is to be created, and whoever loses reads the winner's (ID-042).
    Create(Box<Secret>),
    /// What is there cannot be used, and nothing good was there before (ID-046).
    Wait,
}

impl Authorities {
    /// Takes a Secret by its name.
    pub fn take(&mut self, name: &str, secret: Option<Arc<Secret>>) {
        match name {
            PLUGGED_IN => self.plugged_in = secret,
            _ => self.self_signed = secret,
        }
    }

    /// Why the stored authority is not in force, with the Secret's name.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// The operator's own authority, where another one is plugged in over it (ID-068).
    #[must_use]
    pub fn replaced(&self, now: SystemTime) -> Option<Arc<Authority>> {
        let secret = self.self_signed.as_ref().filter(|_| self.plugged_in.is_some())?;
        read(secret, now).ok().map(Arc::new)
    }

    /// Decides. A bad Secret leaves the last good authority in force; `cacerts` that is bad is never replaced by a
    /// self-signed one (ID-046).
    ///
    /// # Errors
    /// That no key could be made.
    pub fn step(&mut self, trust_domain: &str, now: SystemTime) -> Result<Step, IdentityError> {
        let found = match (&self.plugged_in, &self.self_signed) {
            (Some(secret), _) => Some((PLUGGED_IN, secret)),
            (None, Some(secret)) => Some((SELF_SIGNED, secret)),
            (None, None) => None,
        };
        let Some((name, secret)) = found else {
            // One that was deleted by hand is written again: a new root would part the mesh.
            let authority = match &self.current {
                Some(current) => current.clone(),
                None => Arc::new(Authority::generate(trust_domain, now)?),
            };
            return Ok(Step::Create(Box::new(stored(&authority))));
        };
        match read(secret, now) {
            Ok(authority) => {
                self.problem = None;
                let same = self.current.as_ref().filter(|c| {
                    c.cert_pem() == authority.cert_pem()
                        && c.roots_pem() == authority.roots_pem()
                        && c.key_pem() == authority.key_pem()
                });
                let authority = same.cloned().unwrap_or_else(|| Arc::new(authority));
                self.current = Some(authority);
            }
            Err(error) => self.problem = Some(format!("Secret {name}: {error}")),
        }
        Ok(self.current.clone().map_or(Step::Wait, Step::Use))
    }
}

/// Reads either form of the Secret (ID-040, ID-044, ID-045).
fn read(secret: &Secret, now: SystemTime) -> Result<Authority, IdentityError> {
    let get = |name: &'static str| {
        let missing = IdentityError::Material {
            field: name,
            problem: "is missing".to_owned(),
        };
        let bytes = secret.data.as_ref().and_then(|d| d.get(name)).ok_or(missing)?;
        let not_text = |_| IdentityError::Material {
            field: name,
            problem: "must be PEM text".to_owned(),
        };
        std::str::from_utf8(&bytes.0).map_err(not_text)
    };
    if secret.type_.as_deref() == Some("kubernetes.io/tls") {
        let chain = get("tls.crt")?;
        return Authority::from_pem(chain, get("tls.key")?, chain, get("ca.crt")?, now);
    }
    let cert = get("ca-cert.pem")?;
    // The self-signed form has no chain: the signer is the root.
    let chain = match get("cert-chain.pem") {
        Ok(chain) => chain,
        Err(_) if secret.type_.as_deref() == Some(ROOT_TYPE) => cert,
        Err(error) => return Err(error),
    };
    Authority::from_pem(cert, get("ca-key.pem")?, chain, get("root-cert.pem")?, now)
}

fn stored(authority: &Authority) -> Secret {
    let data = [
        ("ca-cert.pem", authority.cert_pem()),
        ("ca-key.pem", authority.key_pem().expose()),
        ("root-cert.pem", authority.roots_pem()),
    ];
    Secret {
        metadata: ObjectMeta {
            name: Some(SELF_SIGNED.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some(ROOT_TYPE.to_owned()),
        data: Some(
            data.map(|(k, v)| (k.to_owned(), ByteString(v.as_bytes().to_vec())))
                .into(),
        ),
        ..Secret::default()
    }
}

/// Type of the self-signed root's Secret (ID-040).
const ROOT_TYPE: &str = "weft.dev/ca-root";

#[cfg(test)]
mod tests {
    use super::*;

    fn created(authorities: &mut Authorities, now: SystemTime) -> Arc<Secret> {
        match authorities.step("cluster.local", now).expect("step") {
            Step::Create(secret) => Arc::from(secret),
            other => panic!("{other:?}"),
        }
    }

    // spec: ID-040, ID-042
    #[test]
    fn a_root_is_made_once_and_found_again() {
        let now = SystemTime::now();
        let mut authorities = Authorities::default();
        let secret = created(&mut authorities, now);
        authorities.take(SELF_SIGNED, Some(secret.clone()));
        let Step::Use(used) = authorities.step("cluster.local", now).expect("step") else {
            panic!("not in use")
        };
        let stored = &secret.data.as_ref().expect("data")["ca-cert.pem"].0;
        assert_eq!(used.cert_pem().as_bytes(), stored);
        authorities.take(SELF_SIGNED, None);
        assert_eq!(
            created(&mut authorities, now).data,
            secret.data,
            "a deleted root comes back as it was"
        );
    }

    // spec: ID-039, ID-046
    #[test]
    fn a_bad_plugged_in_authority_never_gives_way_to_a_self_signed_one() {
        let now = SystemTime::now();
        let mut authorities = Authorities::default();
        authorities.take(PLUGGED_IN, Some(Arc::default()));
        assert!(matches!(authorities.step("cluster.local", now), Ok(Step::Wait)));
        assert_eq!(authorities.problem(), Some("Secret cacerts: ca-cert.pem: is missing"));
        authorities.take(PLUGGED_IN, None);
        let good = created(&mut authorities, now);
        authorities.take(SELF_SIGNED, Some(good));
        assert!(matches!(authorities.step("cluster.local", now), Ok(Step::Use(_))));
        authorities.take(PLUGGED_IN, Some(Arc::default()));
        assert!(
            matches!(authorities.step("cluster.local", now), Ok(Step::Use(_))),
            "the last good one stays"
        );
    }
}
