//! How leaves are made and renewed: the settings below `identity` (ID-017, ID-019, ID-033).

use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_RSA_SHA256, RsaKeySize};

/// Algorithm of the keys of leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeyAlgorithm {
    /// ECDSA with P-256.
    #[default]
    EcdsaP256,
    /// ECDSA with P-384.
    EcdsaP384,
    /// RSA, 2048 bits.
    Rsa2048,
    /// RSA, 3072 bits.
    Rsa3072,
    /// RSA, 4096 bits.
    Rsa4096,
}

impl KeyAlgorithm {
    /// By the name that the setting has; Envoy's proxies refuse every other one.
    fn parse(name: &str) -> Option<Self> {
        ALGORITHMS.iter().find(|(known, _)| *known == name).map(|(_, a)| *a)
    }

    pub(super) fn is_rsa(self) -> bool {
        !matches!(self, Self::EcdsaP256 | Self::EcdsaP384)
    }

    pub(super) fn generate(self) -> Result<KeyPair, rcgen::Error> {
        match self {
            Self::EcdsaP256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Self::EcdsaP384 => KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384),
            Self::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Self::Rsa3072 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_3072),
            Self::Rsa4096 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_4096),
        }
    }
}

/// How leaves are made and renewed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// Algorithm of their keys.
    pub algorithm: KeyAlgorithm,
    /// Time from issue to expiry.
    pub ttl: Duration,
    /// Share of the lifetime after which one is renewed.
    pub(super) renew_ratio: f64,
    /// Largest share of the lifetime that the renewal is moved by.
    pub(super) renew_jitter: f64,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            algorithm: KeyAlgorithm::default(),
            ttl: super::DEFAULT_TTL,
            renew_ratio: 0.5,
            renew_jitter: 0.01,
        }
    }
}

/// A setting that is refused, and what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting}: {problem}")]
pub struct BadSetting {
    /// Name of the setting.
    pub setting: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Profile {
    /// Checks the settings.
    ///
    /// # Errors
    /// All that are refused.
    pub fn new(algorithm: &str, ttl: Duration, renew_ratio: f64, renew_jitter: f64) -> Result<Self, Vec<BadSetting>> {
        let mut problems = Vec::new();
        let mut refuse = |setting, problem: String| problems.push(BadSetting { setting, problem });
        let known = KeyAlgorithm::parse(algorithm);
        if known.is_none() {
            let names = ALGORITHMS.map(|(name, _)| name).join(", ");
            refuse("identity.keyAlgorithm", format!("{algorithm:?} is not one of {names}"));
        }
        if !(SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) {
            let text = format!("{} s is not within 15m and 2160h", ttl.as_secs());
            refuse("identity.workloadCertTtl", text);
        }
        let is_ratio = (0.1..=0.9).contains(&renew_ratio);
        if !is_ratio {
            refuse(
                "identity.renewRatio",
                format!("{renew_ratio} is not within 0.1 and 0.9"),
            );
        }
        let is_jitter = (0.0..=0.2).contains(&renew_jitter);
        if !is_jitter {
            refuse(
                "identity.renewJitter",
                format!("{renew_jitter} is not within 0 and 0.2"),
            );
        }
        if is_ratio && is_jitter && ttl.mul_f64((1.0 - renew_ratio - renew_jitter).max(0.0)) < SHORTEST_REST {
            let text = "leaves less than 5m between renewal and expiry; lower it, or raise identity.workloadCertTtl";
            refuse("identity.renewRatio", text.to_owned());
        }
        match known {
            Some(algorithm) if problems.is_empty() => Ok(Self {
                algorithm,
                ttl,
                renew_ratio,
                renew_jitter,
            }),
            _ => Err(problems),
        }
    }

    /// When a leaf is renewed; `random` is -1 to 1.
    #[must_use]
    pub fn renew_at(&self, not_before: SystemTime, not_after: SystemTime, random: f64) -> SystemTime {
        super::renew_at(not_before, not_after, self.renew_ratio, self.renew_jitter, random)
    }
}

const ALGORITHMS: [(&str, KeyAlgorithm); 5] = [
    ("ECDSA-P256", KeyAlgorithm::EcdsaP256),
    ("ECDSA-P384", KeyAlgorithm::EcdsaP384),
    ("RSA-2048", KeyAlgorithm::Rsa2048),
    ("RSA-3072", KeyAlgorithm::Rsa3072),
    ("RSA-4096", KeyAlgorithm::Rsa4096),
];
const SHORTEST_TTL: Duration = Duration::from_secs(15 * 60);
const LONGEST_TTL: Duration = Duration::from_secs(2160 * 3600);
const SHORTEST_REST: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn refused(algorithm: &str, ttl: Duration, ratio: f64, jitter: f64) -> Vec<&'static str> {
        let problems = Profile::new(algorithm, ttl, ratio, jitter).err().unwrap_or_default();
        problems.into_iter().map(|p| p.setting).collect()
    }

    // spec: ID-017, ID-019, ID-033
    #[test]
    fn settings_are_refused_by_name_all_at_once() {
        let day = 24 * HOUR;
        assert_eq!(Profile::new("ECDSA-P256", day, 0.5, 0.01), Ok(Profile::default()));
        for algorithm in ["Ed25519", "RSA-1024", "ecdsa-p256", ""] {
            assert_eq!(
                refused(algorithm, day, 0.5, 0.01),
                ["identity.keyAlgorithm"],
                "{algorithm}"
            );
        }
        let ttl = ["identity.workloadCertTtl"];
        assert_eq!(
            refused("RSA-2048", SHORTEST_TTL - Duration::from_secs(1), 0.5, 0.01),
            ttl
        );
        assert_eq!(
            refused("RSA-2048", LONGEST_TTL + Duration::from_secs(1), 0.5, 0.01),
            ttl
        );
        assert!(refused("RSA-2048", LONGEST_TTL, 0.5, 0.01).is_empty());
        assert!(refused("RSA-2048", SHORTEST_TTL, 0.5, 0.01).is_empty());
        for ratio in [0.09, 0.91, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(
                refused("ECDSA-P384", day, ratio, 0.01),
                ["identity.renewRatio"],
                "{ratio}"
            );
        }
        for jitter in [-0.01, 0.21, f64::NAN] {
            assert_eq!(
                refused("ECDSA-P384", day, 0.5, jitter),
                ["identity.renewJitter"],
                "{jitter}"
            );
        }
        // 10 % of 15 minutes is not enough to renew in, and a jitter may eat all of the rest.
        assert_eq!(refused("ECDSA-P256", SHORTEST_TTL, 0.9, 0.0), ["identity.renewRatio"]);
        assert_eq!(refused("ECDSA-P256", day, 0.9, 0.2), ["identity.renewRatio"]);
        let all = [
            "identity.keyAlgorithm",
            "identity.workloadCertTtl",
            "identity.renewRatio",
            "identity.renewJitter",
        ];
        assert_eq!(refused("none", Duration::ZERO, 2.0, 2.0), all);
    }

    // spec: ID-036
    #[test]
    fn what_is_left_of_a_leaf_outlasts_an_operator_that_is_gone() {
        let issued = SystemTime::now();
        let rest = |profile: Profile| {
            let end = issued + profile.ttl;
            end.duration_since(profile.renew_at(issued, end, 1.0))
                .expect("before the end")
        };
        assert!(rest(Profile::default()) >= 12 * HOUR - HOUR / 4);
        let long = Profile::new("ECDSA-P256", 192 * HOUR, 0.1, 0.01).expect("accepted");
        assert!(rest(long) >= 168 * HOUR);
    }
}
