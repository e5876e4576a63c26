use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls_pki_types::ServerName;

use super::*;

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).expect("root");
        Self {
            pem: cert.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, uris: &[&str]) -> (String, String) {
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.subject_alt_names = uris
            .iter()
            .map(|u| SanType::URI((*u).try_into().expect("ia5")))
            .collect();
        params.extended_key_usages = vec![
            rcgen::ExtendedKeyUsagePurpose::ClientAuth,
            rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let cert = params.signed_by(&key, &self.issuer).expect("leaf");
        (cert.pem(), key.serialize_pem())
    }
}

fn trust() -> MeshTrust {
    MeshTrust {
        domains: vec!["cluster.local".into()],
        ..MeshTrust::default()
    }
}

// spec: ID-112
#[test]
fn a_key_of_another_leaf_is_a_mismatch() {
    let ca = Authority::new();
    let (leaf, key) = ca.issue(&["spiffe://cluster.local/ns/a/sa/b"]);
    let (_, other) = ca.issue(&["spiffe://cluster.local/ns/a/sa/b"]);
    let load = |key: &str| Identity::from_pem(leaf.as_bytes(), key.as_bytes(), ca.pem.as_bytes(), &trust());
    assert_eq!(
        &*load(&key).expect("fits").spiffe_id,
        "spiffe://cluster.local/ns/a/sa/b"
    );
    assert_eq!(load(&other).expect_err("does not fit"), IdentityError::Mismatch);
}

// spec: ID-083
#[test]
fn a_leaf_without_exactly_one_spiffe_id_is_refused() {
    let ca = Authority::new();
    for uris in [
        &[][..],
        &["spiffe://cluster.local/a", "spiffe://cluster.local/b"],
        &["https://cluster.local/a"],
        &["spiffe://cluster.local"],
        &["spiffe:///ns/a"],
    ] {
        let (leaf, key) = ca.issue(uris);
        let loaded = Identity::from_pem(leaf.as_bytes(), key.as_bytes(), ca.pem.as_bytes(), &trust());
        assert!(
            matches!(loaded, Err(IdentityError::Parse { file: "tls.crt", .. })),
            "{uris:?}"
        );
    }
}

// spec: ID-077
#[test]
fn the_mesh_internal_name_is_a_legal_server_name() {
    for name in [
        "outbound_.80_._.reviews.default.svc.cluster.local",
        "outbound_.80_.v1_.x.y.svc.cluster.local",
    ] {
        assert!(ServerName::try_from(name).is_ok(), "{name}");
    }
}

// spec: ID-075, ID-076
#[test]
fn alpn_without_overlap_selects_no_protocol() {
    let ca = Authority::new();
    let (leaf, key) = ca.issue(&["spiffe://cluster.local/ns/a/sa/b"]);
    let identity = Identity::from_pem(leaf.as_bytes(), key.as_bytes(), ca.pem.as_bytes(), &trust()).expect("valid");
    let chosen = |list: &[&str]| {
        identity
            .server(list.iter().map(|p| p.as_bytes()))
            .alpn_protocols
            .clone()
    };
    assert_eq!(chosen(&["istio-h2", "istio", "h2"]), [b"h2".to_vec()]);
    assert_eq!(chosen(&["istio-http/1.1", "istio", "http/1.1"]), [b"http/1.1".to_vec()]);
    assert!(chosen(&["istio-peer-exchange", "istio"]).is_empty());
}
