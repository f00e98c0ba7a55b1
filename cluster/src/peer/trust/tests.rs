//! What a secret is and what it gives.

use super::*;
use proptest::prelude::*;

fn secret() -> ClusterSecret {
    ClusterSecret::parse(&ClusterSecret::new_text().unwrap()).unwrap()
}

#[test]
fn a_new_secret_is_accepted_and_no_two_are_alike() {
    let (one, two) = (ClusterSecret::new_text().unwrap(), ClusterSecret::new_text().unwrap());

    assert!(one.starts_with("lea-cluster-"));
    assert_ne!(one, two);
    assert_eq!(ClusterSecret::parse(&one).unwrap().text(), one);
    assert!(ClusterSecret::parse(&format!(" {one}\n")).is_ok());
}

/// Whoever can probe the port could guess what people think of.
#[test]
fn pass_phrases_are_refused_with_advice() {
    for phrase in ["", "correct horse battery staple", "lea-cluster", "lea_cluster-00"] {
        let refused = ClusterSecret::parse(phrase).unwrap_err();
        assert_eq!(refused, SecretError::Prefix);
        assert!(refused.to_string().contains("cluster new-secret"));
    }
    assert!(matches!(ClusterSecret::parse("lea-cluster-hunter2"), Err(SecretError::Digits { wanted: 72, found: 7 })));
    assert!(matches!(ClusterSecret::parse(&format!("lea-cluster-{}", "0".repeat(72))), Err(SecretError::Check)));
}

proptest! {
    #[test]
    fn any_other_text_is_refused(text: String) {
        let prefixed = format!("lea-cluster-{text}");
        prop_assert!(ClusterSecret::parse(&text).is_err());
        prop_assert!(ClusterSecret::parse(&prefixed).is_err());
    }

    /// A slip of the hand is a refusal at start, not a node that finds nobody.
    #[test]
    fn one_wrong_digit_is_noticed(place in 0..72_usize, digit in 1..16_u8) {
        let mut text = ClusterSecret::new_text().unwrap().into_bytes();
        let place = PREFIX.len() + place;
        let old = u8::from_str_radix(std::str::from_utf8(&text[place..=place]).unwrap(), 16).unwrap();
        text[place] = format!("{:x}", old ^ digit).as_bytes()[0];

        prop_assert!(ClusterSecret::parse(std::str::from_utf8(&text).unwrap()).is_err());
    }
}

#[test]
fn nothing_secret_is_shown() {
    let secret = secret();
    let trust = Trust::new(std::slice::from_ref(&secret), &NodeKey::generate().unwrap()).unwrap();

    assert_eq!(format!("{secret:?}"), "***");
    assert_eq!(format!("{:?}", trust.gossip_keys()), "[***]");
    assert!(format!("{trust:?}").ends_with(", ***)"));
}

/// Keys for two purposes are independent, and the same on every node.
#[test]
fn keys_follow_from_the_secret_alone() {
    let (one, other) = (secret(), secret());
    let gossip = |secret: &ClusterSecret| secret.derive("gossip key").unwrap();

    assert_eq!(gossip(&one), gossip(&one.clone()));
    assert_ne!(gossip(&one), gossip(&other));
    assert_ne!(gossip(&one), one.derive("certificate authority").unwrap());
    let certificate = |secret: &ClusterSecret| Authority::of(secret).unwrap().certificate().unwrap();
    assert_eq!(certificate(&one), certificate(&one.clone()));
    assert_ne!(certificate(&one), certificate(&other));
}

#[test]
fn one_or_two_secrets_make_a_trust() {
    let key = NodeKey::generate().unwrap();
    let three = [secret(), secret(), secret()];

    assert_eq!(Trust::new(&[], &key).unwrap_err(), TrustError::Count { found: 0 });
    assert_eq!(Trust::new(&three[..1], &key).unwrap().gossip_keys().len(), 1);
    assert_eq!(Trust::new(&three[..2], &key).unwrap().gossip_keys().len(), 2);
    assert_eq!(Trust::new(&three, &key).unwrap_err(), TrustError::Count { found: 3 });
}

#[test]
fn own_files_that_are_none_are_refused_by_name() {
    let key = NodeKey::generate().unwrap();
    let ca = rcgen::generate_simple_self_signed(vec![]).unwrap();
    let good = OwnPki {
        ca: ca.cert.pem().into_bytes(),
        cert: ca.cert.pem().into_bytes(),
        key: ca.signing_key.serialize_pem().into_bytes(),
    };
    let refused = |pki: OwnPki| {
        let refused = Trust::with_own_pki(&pki, &[secret()], &key).unwrap_err();
        if let TrustError::File { file, .. } = refused { file } else { panic!("{refused}") }
    };

    assert!(Trust::with_own_pki(&good, &[secret()], &key).is_ok());
    assert_eq!(refused(OwnPki { ca: b"nothing".to_vec(), ..good.clone() }), "ca");
    assert_eq!(refused(OwnPki { cert: Vec::new(), ..good.clone() }), "cert");
    assert_eq!(refused(OwnPki { key: b"nothing".to_vec(), ..good.clone() }), "key");
}
