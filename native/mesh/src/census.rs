//! Who is in by a listener, who is on the way, and who else gets in. Plain data: no network.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::settings::Transport;

/// Everybody who is in, or on the way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    all: Visitors,
    /// By [`origin`].
    by_address: HashMap<IpAddr, Visitors>,
}

/// How many there are: all, or those from one address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Visitors {
    /// Handshakes under way, and those that came to nothing, as long as quinn keeps them.
    pub(crate) handshakes: usize,
    /// Connections, those under way included.
    pub(crate) connections: usize,
    /// The same, and those that are over, as long as quinn keeps them.
    pub(crate) seats: usize,
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// He has to show first that he receives at his address.
    Unproven,
    /// The option whose bound is reached.
    Full(&'static str),
}

/// A client who is in, or on the way; dropped when his connection is over.
#[derive(Debug)]
pub(crate) struct Visit(Arc<Seat>);

/// A client's place, which he takes up as long as anything is kept of him: quinn drops it, too.
#[derive(Debug)]
pub(crate) struct Seat {
    census: Census,
    origin: IpAddr,
    is_shaking_hands: AtomicBool,
}

impl Census {
    pub(crate) fn all(&self) -> Visitors {
        self.lock().all
    }

    /// Lets in whoever begins a handshake from `ip`. `is_proven`: he receives there, or may not
    /// be asked; `waiting`: connections that wait to be accepted. Handshakes under way are not among
    /// these: who never finishes his would keep everybody out.
    pub(crate) fn admit(
        &self,
        ip: IpAddr,
        is_proven: bool,
        waiting: usize,
        limits: &Transport,
    ) -> Result<Visit, Refusal> {
        let origin = origin(ip);
        let mut counts = self.lock();
        let all = counts.all;
        if all.handshakes >= limits.retry_above_handshakes() && !is_proven {
            return Err(Refusal::Unproven);
        }
        let here = counts.by_address.get(&origin).copied().unwrap_or_default();
        let most_here = most_handshakes(here.handshakes, all.handshakes, limits);
        let bounds = [
            ("max_handshakes", all.handshakes, limits.max_handshakes()),
            ("max_handshakes_per_address", here.handshakes, most_here),
            ("max_connections", all.seats, limits.max_connections()),
            ("max_connections_per_address", here.seats, limits.max_connections_per_address()),
            ("backlog", waiting, limits.backlog()),
        ];
        if let Some((full, _, _)) = bounds.into_iter().find(|(_, count, most)| count >= most) {
            return Err(Refusal::Full(full));
        }
        counts.change(origin, |visitors| {
            visitors.handshakes += 1;
            visitors.connections += 1;
            visitors.seats += 1;
        });
        let is_shaking_hands = AtomicBool::new(true);
        Ok(Visit(Arc::new(Seat { census: self.clone(), origin, is_shaking_hands })))
    }

    /// A std mutex, because nothing awaits inside.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one address: of IPv6 the network (/64, RFC 4291, section 2.5.1), of whose
/// addresses one client has as many as it likes.
fn origin(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// Handshakes of one address at most: of the places that others leave free, half are for those who
/// come after it. Otherwise as few addresses as fill all places would keep everybody out.
fn most_handshakes(here: usize, all: usize, limits: &Transport) -> usize {
    let free = (limits.max_handshakes() + here).saturating_sub(all);
    limits.max_handshakes_per_address().min(free.div_ceil(2))
}

impl Counts {
    fn change(&mut self, origin: IpAddr, change: impl Fn(&mut Visitors)) {
        change(&mut self.all);
        let here = self.by_address.entry(origin).or_default();
        change(here);
        if here.seats == 0 {
            self.by_address.remove(&origin);
        }
    }
}

impl Visit {
    /// What quinn is to keep with the connection.
    pub(crate) fn seat(&self) -> Arc<Seat> {
        self.0.clone()
    }

    /// The handshake has succeeded.
    pub(crate) fn shake_hands(&self) {
        self.0.shake_hands();
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.change(|visitors| visitors.connections -= 1);
    }
}

impl Seat {
    fn shake_hands(&self) {
        if self.is_shaking_hands.swap(false, Ordering::Relaxed) {
            self.change(|visitors| visitors.handshakes -= 1);
        }
    }

    fn change(&self, change: impl Fn(&mut Visitors)) {
        self.census.lock().change(self.origin, change);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.shake_hands();
        self.change(|visitors| visitors.seats -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

    fn limits(options: &[(&str, u64)]) -> Transport {
        let mut limits = Transport::default();
        for (key, value) in options {
            assert_eq!(limits.set(key, *value), Ok(true));
        }
        limits
    }

    fn refusal(admitted: Result<Visit, Refusal>) -> Option<Refusal> {
        admitted.err()
    }

    #[test]
    fn each_bound_holds_and_is_told_by_name() {
        let few = [
            ("max_handshakes", 3),
            ("max_handshakes_per_address", 2),
            ("max_connections", 4),
            ("max_connections_per_address", 3),
            ("backlog", 1),
        ];
        let limits = limits(&few);
        let census = Census::default();
        let admit = |ip, waiting| census.admit(ip, true, waiting, &limits);
        assert_eq!(refusal(admit(HERE, 1)), Some(Refusal::Full("backlog")));
        let mut visits = vec![admit(HERE, 0).expect("room"), admit(HERE, 0).expect("room")];
        assert_eq!(refusal(admit(HERE, 0)), Some(Refusal::Full("max_handshakes_per_address")));
        visits.push(admit(THERE, 0).expect("room for others"));
        assert_eq!(refusal(admit(THERE, 0)), Some(Refusal::Full("max_handshakes")));
        visits.iter().for_each(Visit::shake_hands);
        visits.push(admit(HERE, 0).expect("room"));
        visits.iter().for_each(Visit::shake_hands);
        assert_eq!(refusal(admit(THERE, 0)), Some(Refusal::Full("max_connections")));
        visits.swap_remove(2);
        assert_eq!(refusal(admit(HERE, 0)), Some(Refusal::Full("max_connections_per_address")));
        assert_eq!(census.all(), Visitors { handshakes: 0, connections: 3, seats: 3 });
        drop(visits);
        assert_eq!(census.all(), Visitors::default());
        assert!(census.lock().by_address.is_empty());
    }

    /// As many of them as it takes of the bound of one to fill all places would keep others out.
    #[test]
    fn one_address_takes_at_most_half_of_the_handshakes_that_others_leave_free() {
        let limits = limits(&[("max_handshakes", 16), ("max_handshakes_per_address", 6)]);
        let census = Census::default();
        let mut visits = Vec::new();
        let mut fill = |last| {
            let ip = Ipv4Addr::new(127, 0, 0, last).into();
            let before = visits.len();
            loop {
                match census.admit(ip, true, 0, &limits) {
                    Ok(visit) => visits.push(visit),
                    Err(full) => return (visits.len() - before, full),
                }
            }
        };
        let own = Refusal::Full("max_handshakes_per_address");
        let taken: Vec<_> = (1..=5).map(&mut fill).collect();
        assert_eq!(
            taken,
            [(6, own), (5, own), (3, own), (1, own), (1, Refusal::Full("max_handshakes"))]
        );
    }

    #[test]
    fn all_addresses_of_one_network_of_ipv6_count_as_one() {
        let limits = limits(&[("max_connections_per_address", 1)]);
        let census = Census::default();
        let admit = |ip: &str| census.admit(ip.parse().expect("an address"), true, 0, &limits);
        let _visit = admit("2001:db8::1").expect("room");
        let full = Some(Refusal::Full("max_connections_per_address"));
        assert_eq!(refusal(admit("2001:db8::ffff:0:0:1")), full);
        assert_eq!(refusal(admit("2001:db8:0:1::1")), None);
        let _visit = admit("192.0.2.1").expect("room");
        assert_eq!(refusal(admit("192.0.2.2")), None);
    }

    #[test]
    fn above_so_many_handshakes_an_address_has_to_be_proven_before_it_counts() {
        let limits = limits(&[("retry_above_handshakes", 1), ("max_handshakes", 1)]);
        let census = Census::default();
        let visit = census.admit(HERE, false, 0, &limits).expect("room");
        assert_eq!(refusal(census.admit(THERE, false, 0, &limits)), Some(Refusal::Unproven));
        let full = Some(Refusal::Full("max_handshakes"));
        assert_eq!(refusal(census.admit(THERE, true, 0, &limits)), full);
        visit.shake_hands();
        assert!(census.admit(THERE, false, 0, &limits).is_ok());
    }

    /// Whoever closes a connection decides how long quinn keeps it.
    #[test]
    fn who_has_gone_takes_up_his_seat_as_long_as_anything_is_kept_of_him() {
        let limits = limits(&[("max_connections", 1), ("max_handshakes", 1)]);
        let census = Census::default();
        let admit = || census.admit(HERE, true, 0, &limits);
        let visit = admit().expect("room");
        let seat = visit.seat();
        drop(visit);
        assert_eq!(census.all(), Visitors { handshakes: 1, connections: 0, seats: 1 });
        assert_eq!(refusal(admit()), Some(Refusal::Full("max_handshakes")));
        drop(seat);
        assert_eq!(census.all(), Visitors::default());
        let visit = admit().expect("room");
        visit.shake_hands();
        let seat = visit.seat();
        drop(visit);
        assert_eq!(census.all(), Visitors { handshakes: 0, connections: 0, seats: 1 });
        assert_eq!(refusal(admit()), Some(Refusal::Full("max_connections")));
        drop(seat);
        assert!(census.lock().by_address.is_empty());
    }
}
