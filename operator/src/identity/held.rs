//! What the Secret of an identity holds: whether it is still good, until when, and when it is renewed.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::{Timestamp, fmt::strtime};
use rcgen::KeyPair;
use weft_bundle::pack::Files;

use super::{Authority, Leaf, SpiffeId, check, first, parse_pem, time};

/// Annotations that tell of a leaf (ID-025).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// When it is renewed.
    pub renew_at: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

impl Held {
    /// `None` when the Secret must be issued anew: the key is not the chain's, the identity is another, the issuer is
    /// not this authority, it has expired, or the annotations are not what was written (ID-029, ID-030).
    #[must_use]
    pub fn read(
        files: &Files,
        annotations: &BTreeMap<String, String>,
        id: &SpiffeId,
        authority: &Authority,
        now: SystemTime,
    ) -> Option<Self> {
        let text = |name: &str| std::str::from_utf8(files.get(name)?).ok();
        let (chain, key) = (text("cert-chain.pem")?, text("key.pem")?);
        let blocks = parse_pem("cert-chain.pem", chain).ok()?;
        let cert = first("cert-chain.pem", &blocks).ok()?;
        check(&blocks.first()?.contents, id, &authority.cert_pem, now).ok()?;
        let key = KeyPair::from_pem(key).ok()?;
        if cert.public_key().raw != rcgen::PublicKeyData::subject_public_key_info(&key) {
            return None;
        }
        let intermediates = |text: &str| -> Vec<Vec<u8>> {
            parse_pem("cert-chain.pem", text)
                .unwrap_or_default()
                .into_iter()
                .map(|b| b.contents)
                .collect()
        };
        if blocks.iter().skip(1).map(|b| b.contents.clone()).collect::<Vec<_>>() != intermediates(&authority.chain_pem)
        {
            return None;
        }
        let (not_before, not_after) = (
            time(cert.validity().not_before.timestamp()),
            time(cert.validity().not_after.timestamp()),
        );
        let renew_at = read_time(annotations.get(RENEW_AT)?)?;
        let is_known = annotations
            .get(SPIFFE_ID)
            .is_some_and(|written| *written == id.to_string());
        (is_known && renew_at > not_before && renew_at < not_after).then_some(Self { renew_at, not_after })
    }
}

/// Annotations of the Secret of a leaf (ID-025).
#[must_use]
pub fn annotations(leaf: &Leaf, id: &SpiffeId, renew_at: SystemTime) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = [
        (SPIFFE_ID, id.to_string()),
        (NOT_BEFORE, write_time(leaf.not_before)),
        (NOT_AFTER, write_time(leaf.not_after)),
        (RENEW_AT, write_time(renew_at)),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let blocks = parse_pem("cert-chain.pem", &leaf.chain_pem).unwrap_or_default();
    if let Ok(cert) = first("cert-chain.pem", &blocks) {
        all.insert(ISSUER.to_owned(), cert.issuer().to_string());
        all.insert(SERIAL.to_owned(), data_encoding::HEXLOWER.encode(cert.raw_serial()));
    }
    all
}

/// RFC 3339 in UTC, whole seconds.
#[must_use]
pub fn write_time(time: SystemTime) -> String {
    let seconds = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let timestamp = i64::try_from(seconds)
        .ok()
        .and_then(|s| Timestamp::from_second(s).ok())
        .unwrap_or(Timestamp::MAX);
    strtime::format("%Y-%m-%dT%H:%M:%SZ", timestamp).unwrap_or_else(|_| timestamp.to_string())
}

fn read_time(text: &str) -> Option<SystemTime> {
    let seconds = text.parse::<Timestamp>().ok()?.as_second();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).ok()?))
}

const SPIFFE_ID: &str = "weft.dev/spiffe-id";
const NOT_BEFORE: &str = "weft.dev/not-before";
const NOT_AFTER: &str = "weft.dev/not-after";
const RENEW_AT: &str = "weft.dev/renew-at";
const ISSUER: &str = "weft.dev/issuer";
const SERIAL: &str = "weft.dev/serial";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Profile, renew_at, secret};

    fn id(service_account: &str) -> SpiffeId {
        SpiffeId {
            trust_domain: "cluster.local".into(),
            namespace: "shop".into(),
            service_account: service_account.into(),
        }
    }

    // spec: ID-002, ID-025, ID-030
    #[test]
    fn what_was_written_is_held_and_what_was_tampered_with_is_not() {
        let now = SystemTime::now();
        let authority = Authority::generate("cluster.local", now).expect("authority");
        let other = Authority::generate("cluster.local", now).expect("authority");
        let leaf = authority.issue(&id("cart"), &Profile::default(), now).expect("leaf");
        let renewal = renew_at(leaf.not_before, leaf.not_after, 0.5, 0.0, 0.0);
        let notes = annotations(&leaf, &id("cart"), renewal);
        assert_eq!(notes[SPIFFE_ID], "spiffe://cluster.local/ns/shop/sa/cart");
        let files = secret(&leaf, authority.roots_pem());
        let held = Held::read(&files, &notes, &id("cart"), &authority, now).expect("held");
        assert!(renewal.duration_since(held.renew_at).expect("rounded down") < Duration::from_secs(1));
        assert!(
            Held::read(&files, &notes, &id("till"), &authority, now).is_none(),
            "another identity"
        );
        assert!(
            Held::read(&files, &notes, &id("cart"), &other, now).is_none(),
            "another issuer"
        );
        assert!(
            Held::read(&files, &notes, &id("cart"), &authority, leaf.not_after).is_none(),
            "expired"
        );
        let moved = SpiffeId {
            trust_domain: "mesh.example".into(),
            ..id("cart")
        };
        assert!(
            Held::read(&files, &notes, &moved, &authority, now).is_none(),
            "another trust domain"
        );
        let stranger = authority.issue(&id("cart"), &Profile::default(), now).expect("leaf");
        let mut mixed = files.clone();
        mixed.insert("key.pem".into(), stranger.key_pem.expose().as_bytes().to_vec());
        assert!(
            Held::read(&mixed, &notes, &id("cart"), &authority, now).is_none(),
            "the key of another leaf"
        );
        let mut late = notes.clone();
        late.insert(RENEW_AT.into(), "2999-01-01T00:00:00Z".into());
        assert!(
            Held::read(&files, &late, &id("cart"), &authority, now).is_none(),
            "a renewal after the end"
        );
    }
}
