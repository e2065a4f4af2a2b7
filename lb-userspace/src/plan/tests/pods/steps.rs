//! The order in which pods come and go.

use super::*;

#[test]
fn replies_come_before_services_and_go_after_them() {
    let mut before = World::new();
    before.desired.internal_networks = [prefix("10.96.0.0/12")].into();
    before.desired.trusted_sources = [prefix("10.200.0.0/16")].into();
    let mut after = World { mtu: Some(1400), ..World::new() };
    let new = vip("198.51.100.11", 17, 53);
    after.desired.services = [(new, service(&[(NODE_V4, &[(pod(SECOND_POD, 53), READY)])]))].into();
    after.desired.trusted_sources = [prefix("10.201.0.0/16")].into();
    let (before, after) = (before.wanted(), after.wanted());
    let reply = ReplyKey { pod: ip(SECOND_POD), protocol: 17, port: 53 };
    // Prefixes are in the order of their addresses.
    let expected = [
        Step::SetMss([1320, 1300]),
        Step::Trust(prefix("10.201.0.0/16")),
        Step::AddInternal(Prefix::of(ip(SECOND_POD)), true),
        Step::PutReply(reply, after.replies[&reply]),
        Step::PutService(new, after.services[&new].clone()),
        Step::RemoveService(web()),
        Step::RemoveReply(reply_key(POD, 6)),
        Step::RemoveInternal(prefix("10.50.0.12/32")),
        Step::RemoveInternal(prefix("10.96.0.0/12")),
        Step::RemoveInternal(prefix("10.244.1.2/32")),
        Step::RemoveInternal(prefix("10.244.2.2/32")),
        Step::Distrust(prefix("10.200.0.0/16")),
    ];
    assert_eq!(steps(&actual(&before), &after), expected);
    assert_eq!(steps(&actual(&after), &after), []);
}

#[test]
fn what_changes_in_place_is_put_again() {
    let before = World::new().wanted();
    let mut after = World::new();
    after.desired.direct_pod_access = true;
    let after = after.wanted();
    let expected = [
        Step::PutReply(reply_key(POD, 6), after.replies[&reply_key(POD, 6)]),
        Step::PutService(web(), after.services[&web()].clone()),
    ];
    assert_eq!(steps(&actual(&before), &after), expected);

    let moved = World { own: [ip(OTHER_NODE)].into(), ..World::new() }.wanted();
    let steps = steps(&actual(&before), &moved);
    let internal: Vec<_> = steps.iter().filter(|step| matches!(step, Step::AddInternal(..))).collect();
    let expected = [Step::AddInternal(Prefix::of(ip(POD)), false), Step::AddInternal(Prefix::of(ip(FAR_POD)), true)];
    assert_eq!(internal, expected.iter().collect::<Vec<_>>());
}

#[test]
fn a_device_that_vanishes_puts_the_service_again() {
    let mut world = World::new();
    let before = world.wanted();
    world.devices.clear();
    let after = world.wanted();
    assert_eq!(steps(&actual(&before), &after), [Step::PutService(web(), after.services[&web()].clone())]);
}

#[test]
fn an_unknown_mss_is_written() {
    let wanted = World::new().wanted();
    let adopted = Actual { mss: None, ..actual(&wanted) };
    assert_eq!(steps(&adopted, &wanted), [Step::SetMss([1420, 1400])]);
}
