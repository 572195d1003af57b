//! Room, the line for it, and what becomes of messages, in an outbox without a connection.

use std::sync::mpsc;
use std::thread;

use bytes::Bytes;
use futures_util::FutureExt;

use super::*;

impl Outbox {
    /// Takes the oldest queued message out, whatever its size.
    fn take(&self) -> Option<(Message, Option<usize>)> {
        self.take_of(self.next_bytes()?)
    }
}

const ROOMY: Load = Load { messages: 100, bytes: 1_000 };

fn outbox(limit: Load, watermark_bytes: usize, budget: Load) -> (Outbox, Arc<Budget>) {
    let budget = Arc::new(Budget::new(budget));
    let limits = Limits { outstanding: limit, watermark_bytes, pool_watermark_bytes: usize::MAX };
    (Outbox::new(limits, budget.clone()), budget)
}

fn message(bytes: usize) -> Payload<'static> {
    Bytes::from(vec![0; bytes]).into()
}

fn count(entries: &VecDeque<Entry>) -> usize {
    entries.iter().map(|entry| entry.load().messages).sum()
}

#[test]
fn refuses_what_exceeds_the_peers_share() {
    let (outbox, _) = outbox(Load { messages: 2, bytes: 100 }, 100, ROOMY);
    assert_eq!(outbox.push(message(101)), Err(Error::MessageTooLarge));
    assert_eq!(outbox.push(message(90)), Ok(()));
    assert_eq!(outbox.push(message(11)), Err(Error::QueueFull));
    assert_eq!(outbox.push(message(10)), Ok(()));
    assert_eq!(outbox.push(message(0)), Err(Error::QueueFull));
}

#[test]
fn refuses_what_exceeds_the_pools_share_and_gives_it_back() {
    let (outbox, budget) = outbox(ROOMY, 1_000, Load { messages: 2, bytes: 50 });
    assert_eq!(outbox.push(message(40)), Ok(()));
    assert_eq!(outbox.push(message(20)), Err(Error::PoolQueueFull));
    assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(40));
    outbox.settle(Load { messages: 1, bytes: 40 });
    assert_eq!(budget.used(), Load::default());
    assert_eq!(outbox.push(message(20)), Ok(()));
    assert_eq!(outbox.push(message(20)), Ok(()));
    drop(outbox);
    assert_eq!(budget.used(), Load::default());
}

#[test]
fn a_sender_waits_above_the_watermark_and_gets_its_turn() {
    let (outbox, _) = outbox(ROOMY, 10, ROOMY);
    assert!(matches!(outbox.send(message(10)), Ok(Sent::Accepted)));
    assert_eq!(outbox.try_send(message(1)), Err(Error::QueueFull));
    let Ok(Sent::Waiting(mut turn)) = outbox.send(message(20)) else {
        panic!("the second message must wait");
    };
    assert!(turn.try_recv().is_err());
    assert!(outbox.take().is_some());
    outbox.settle(Load { messages: 1, bytes: 10 });
    assert_eq!(turn.try_recv(), Ok(Ok(())));
    assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(20));
}

#[test]
fn senders_in_line_are_let_in_together_once_a_quarter_is_free() {
    let (outbox, _) = outbox(ROOMY, 100, ROOMY);
    for _ in 0..10 {
        assert_eq!(outbox.push(message(10)), Ok(()));
    }
    let [mut first, mut second] = [outbox.send(message(1)), outbox.send(message(2))].map(|sent| {
        let Ok(Sent::Waiting(turn)) = sent else { panic!("no room is left") };
        turn
    });
    outbox.settle(Load { messages: 2, bytes: 20 });
    assert!(first.try_recv().is_err());
    outbox.settle(Load { messages: 1, bytes: 10 });
    assert_eq!((first.try_recv(), second.try_recv()), (Ok(Ok(())), Ok(Ok(()))));
}

/// Lets a peer take messages of so many bytes, each followed by one of a sender that does not
/// wait, until the sender in line is let in; `None`: he never is.
fn served_after(
    outbox: &Outbox,
    bytes: usize,
    turn: &mut oneshot::Receiver<Result<(), Error>>,
) -> Option<usize> {
    (1..1_000).find(|_| {
        assert!(outbox.take().is_some());
        outbox.settle(Load { messages: 1, bytes });
        // The others never let the outbox run empty, and take what room they get.
        while outbox.push(message(bytes)).is_ok() && outbox.outstanding().messages < 4 {}
        turn.try_recv().is_ok()
    })
}

#[test]
fn a_message_beyond_the_watermark_gets_in_beside_others_that_keep_coming() {
    let (outbox, _) = outbox(ROOMY, 100, ROOMY);
    assert_eq!([outbox.push(message(10)), outbox.push(message(10))], [Ok(()), Ok(())]);
    let Ok(Sent::Waiting(mut turn)) = outbox.send(message(500)) else {
        panic!("it is beyond the watermark");
    };
    let Ok(Sent::Waiting(mut next)) = outbox.send(message(500)) else {
        panic!("somebody is before it");
    };
    assert_eq!(served_after(&outbox, 10, &mut turn), Some(1));
    assert!(next.try_recv().is_err(), "one at a time");
}

#[test]
fn who_needs_all_the_room_gets_it_though_others_keep_coming() {
    let (outbox, _) = outbox(ROOMY, 100, ROOMY);
    assert_eq!([outbox.push(message(10)), outbox.push(message(10))], [Ok(()), Ok(())]);
    let Ok(Sent::Waiting(mut turn)) = outbox.send(message(ROOMY.bytes)) else {
        panic!("it is beyond the watermark");
    };
    assert!(served_after(&outbox, 10, &mut turn).is_some());
}

/// An outbox that senders who do not wait have filled up to its limit, by tens of bytes.
fn flooded(budget: Load) -> (Outbox, Arc<Budget>) {
    let (outbox, budget) = outbox(Load { messages: 100, bytes: 200 }, 100, budget);
    while outbox.push(message(10)).is_ok() {}
    (outbox, budget)
}

#[test]
fn those_in_line_get_their_turn_in_a_flood_after_a_watermark_of_others() {
    let (outbox, _) = flooded(ROOMY);
    assert_eq!(outbox.outstanding().bytes, 200);
    let mut turns = [10, 10, 50].map(|bytes| {
        let Ok(Sent::Waiting(turn)) = outbox.send(message(bytes)) else {
            panic!("the watermark is used up")
        };
        turn
    });
    let mut served = || {
        (1..100).find(|_| {
            assert!(outbox.take().is_some());
            outbox.settle(Load { messages: 1, bytes: 10 });
            while outbox.push(message(10)).is_ok() {}
            turns.iter_mut().any(|turn| turn.try_recv().is_ok())
        })
    };
    assert_eq!([served(), served()], [Some(10), Some(10)]);
    // Five times as large as what goes at a time: room is kept for it.
    assert_eq!(served(), Some(10 + 4));
    assert!(outbox.outstanding().bytes <= 200);
    // And for nobody, when nobody waits.
    while outbox.push(message(1)).is_ok() {}
    assert_eq!(outbox.outstanding().bytes, 200);
}

#[test]
fn room_that_was_kept_for_a_sender_who_has_gone_is_there_for_others() {
    let (outbox, _) = flooded(ROOMY);
    let [turn, _next] = [150, 10].map(|bytes| {
        let Ok(Sent::Waiting(turn)) = outbox.send(message(bytes)) else {
            panic!("the watermark is used up")
        };
        turn
    });
    for _ in 0..10 {
        assert!(outbox.take().is_some());
        outbox.settle(Load { messages: 1, bytes: 10 });
    }
    assert_eq!(outbox.push(message(10)), Err(Error::QueueFull));
    drop(turn);
    outbox.note_gone();
    // But for that of the next in line.
    assert_eq!(outbox.push(message(91)), Err(Error::QueueFull));
    assert_eq!(outbox.push(message(90)), Ok(()));
}

#[test]
fn a_full_pool_does_not_hold_up_the_first_in_line_for_ever() {
    let (outbox, budget) = flooded(Load { messages: 1_000, bytes: 200 });
    let Ok(Sent::Waiting(mut turn)) = outbox.send(message(20)) else {
        panic!("the watermark is used up")
    };
    let served = (1..100).find(|_| {
        assert!(outbox.take().is_some());
        outbox.settle(Load { messages: 1, bytes: 10 });
        // Others of the pool take each room.
        while budget.try_accept(Load { messages: 1, bytes: 10 }) {}
        turn.try_recv().is_ok()
    });
    // Long before nothing is outstanding.
    assert_eq!(served, Some(10));
}

#[test]
fn while_others_have_much_outstanding_the_watermark_is_low() {
    let roomy = Load { messages: 100, bytes: 10 * LOW_BYTES };
    let (one, budget) = outbox(roomy, 4 * LOW_BYTES, roomy);
    let limits = Limits { pool_watermark_bytes: 2 * LOW_BYTES, ..one.limits };
    let other = Outbox::new(limits, budget);
    let much = Load { messages: 1, bytes: 2 * LOW_BYTES };
    assert_eq!(one.push(message(much.bytes)), Ok(()));
    assert_eq!(other.try_send(message(LOW_BYTES)), Ok(()));
    assert_eq!(other.try_send(message(1)), Err(Error::QueueFull));
    one.settle(much);
    assert_eq!(other.try_send(message(LOW_BYTES)), Ok(()));
    assert_eq!(other.try_send(message(1)), Ok(()));
}

#[test]
fn first_messages_beyond_the_budget_are_as_many_as_it_allows_once_more() {
    let limit = Load { messages: 3, bytes: 1_000 };
    let budget = Arc::new(Budget::new(limit));
    let limits = Limits {
        outstanding: ROOMY,
        watermark_bytes: usize::MAX,
        pool_watermark_bytes: usize::MAX,
    };
    let outboxes: Vec<_> = (0..7).map(|_| Outbox::new(limits, budget.clone())).collect();
    let taken: Vec<_> = outboxes.iter().map(|outbox| outbox.push(message(100))).collect();
    assert_eq!(taken[..6], [const { Ok(()) }; 6]);
    assert_eq!(taken[6], Err(Error::PoolQueueFull));
    assert_eq!(outboxes[6].try_send(message(100)), Err(Error::PoolQueueFull));
    // Who would wait, for there is nothing here whose landing could wake him, is served.
    assert!(matches!(outboxes[6].send(message(100)), Ok(Sent::Accepted)));
    assert_eq!(budget.used(), Load { messages: 7, bytes: 700 });
    let large = Arc::new(Budget::new(Load { messages: 3, bytes: 10 }));
    assert_eq!(Outbox::new(limits, large).push(message(900)), Ok(()));
}

#[tokio::test]
async fn a_queue_that_was_long_leaves_no_room_behind() {
    let (many, bytes) = (1_000, 1_000 * 2_048);
    let roomy = Load { messages: 2 * many, bytes: 2 * bytes };
    let (outbox, _) = outbox(roomy, bytes, roomy);
    for _ in 0..many {
        assert_eq!(outbox.push(message(2_048)), Ok(()));
    }
    let turns: Vec<_> = (0..many).map(|_| outbox.send(message(2_048))).collect();
    assert!(turns.iter().all(|turn| matches!(turn, Ok(Sent::Waiting(_)))));
    while let Some((message, _)) = outbox.take() {
        outbox.settle(message.load());
    }
    assert_eq!(outbox.next().now_or_never(), None);
    assert_eq!(outbox.lock().queue.capacity(), 0);
}

#[test]
fn what_has_come_back_does_not_travel_with_what_has_not() {
    let (outbox, _) = outbox(ROOMY, 1_000, ROOMY);
    assert_eq!(outbox.push(message(1)), Ok(()));
    let mut piece = outbox.take_piece(1_000, 1_000);
    piece.iter_mut().for_each(Entry::turn_back);
    outbox.restore(piece.into_iter());
    assert_eq!(outbox.push(message(2)), Ok(()));
    let loads = |piece: Vec<Entry>| piece.iter().map(|e| e.load().bytes).collect::<Vec<_>>();
    assert_eq!(loads(outbox.take_piece(1_000, 1_000)), vec![1]);
    assert_eq!(loads(outbox.take_piece(1_000, 1_000)), vec![2]);
}

#[test]
fn the_message_of_a_sender_that_has_gone_is_not_sent() {
    let (outbox, _) = outbox(ROOMY, 1, ROOMY);
    assert!(matches!(outbox.send(message(5)), Ok(Sent::Accepted)));
    drop(outbox.send(message(6)));
    let Ok(Sent::Waiting(mut turn)) = outbox.send(message(7)) else {
        panic!("the third message must wait");
    };
    assert!(outbox.take().is_some());
    outbox.settle(Load { messages: 1, bytes: 5 });
    assert_eq!(turn.try_recv(), Ok(Ok(())));
    assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(7));
}

#[test]
fn a_draining_outbox_lets_out_what_it_has_and_takes_nothing() {
    let (outbox, _) = outbox(ROOMY, 1_000, ROOMY);
    assert_eq!(outbox.push(message(1)), Ok(()));
    outbox.drain(Error::Evicted);
    assert_eq!(outbox.push(message(1)), Err(Error::Evicted));
    assert!(outbox.take().is_some());
    outbox.settle(Load { messages: 1, bytes: 1 });
    assert!(outbox.is_idle());
}

#[test]
fn closing_tells_what_was_not_sent_from_what_may_have_arrived() {
    let (outbox, budget) = outbox(ROOMY, 3, ROOMY);
    for _ in 0..3 {
        assert_eq!(outbox.push(message(1)), Ok(()));
    }
    let Ok(Sent::Waiting(mut turn)) = outbox.send(message(1)) else {
        panic!("the fourth message must wait");
    };
    assert!(outbox.take().is_some());
    let Remains { queued, taken, line, reservation } = outbox.end(Error::Reset);
    assert_eq!((count(&queued), taken), (2, 1));
    // Not while who has ended it may have locked something.
    assert!(turn.try_recv().is_err());
    line.close(&Error::Reset, |_| {});
    assert_eq!(turn.try_recv(), Ok(Err(Error::Reset)));
    // The task may still settle what it had taken.
    outbox.settle(Load { messages: 1, bytes: 1 });
    assert_eq!(budget.used(), Load { messages: 3, bytes: 3 });
    drop(reservation);
    assert_eq!(budget.used(), Load::default());
    assert_eq!(outbox.push(message(1)), Err(Error::Reset));
}

#[test]
fn messages_that_go_to_another_outbox_are_held_by_the_budget_all_the_while() {
    let (lost, budget) = outbox(ROOMY, 1_000, ROOMY);
    let heir = Outbox::new(
        Limits { outstanding: Load { messages: 2, bytes: 1_000 }, ..lost.limits },
        budget.clone(),
    );
    // Each by itself: a batch would go or stay as a whole.
    for bytes in [300, 200, 100] {
        let (message, _) = Message::confirmed(Bytes::from(vec![0; bytes]));
        assert!(lost.deliver(message).is_ok());
    }
    let Remains { queued, mut reservation, .. } = lost.end(Error::Reset);
    let heir = Arc::new(heir);
    let refused = lost.bequeath(heir.as_heir(), queued, &mut reservation);
    assert_eq!(count(&refused), 1);
    assert_eq!(budget.used(), Load { messages: 3, bytes: 600 });
    drop(reservation);
    assert_eq!(budget.used(), Load { messages: 2, bytes: 500 });
    assert_eq!(heir.outstanding(), budget.used());
}

#[test]
fn what_is_left_to_another_outbox_comes_before_what_is_sent_to_that() {
    let (lost, budget) = outbox(ROOMY, 1_000, ROOMY);
    let heir = Arc::new(Outbox::new(lost.limits, budget));
    assert_eq!(lost.push(Payload::Borrowed(b"before")), Ok(()));
    let Remains { queued, mut reservation, .. } = lost.end(Error::Reset);
    let inherits = heir.as_heir();
    thread::scope(|scope| {
        let (begins, begun) = mpsc::channel();
        let sender = heir.clone();
        scope.spawn(move || {
            begins.send(()).ok();
            assert_eq!(sender.push(Payload::Borrowed(b"behind")), Ok(()));
        });
        assert_eq!(begun.recv(), Ok(()));
        assert_eq!(count(&lost.bequeath(inherits, queued, &mut reservation)), 0);
    });
    let taken = std::iter::from_fn(|| Some(heir.take()?.0.data));
    assert_eq!(taken.collect::<Vec<_>>(), ["before", "behind"]);
}

/// Whose connection only drains has a successor, to which newer messages have gone.
#[test]
fn what_is_left_to_another_outbox_comes_before_what_that_has_not_begun_to_send() {
    let (lost, budget) = outbox(ROOMY, 1_000, ROOMY);
    let heir = Arc::new(Outbox::new(lost.limits, budget));
    // Each by itself, not in a batch.
    let deliver = |outbox: &Outbox, data: &'static str| {
        assert!(outbox.deliver(Message::confirmed(data.into()).0).is_ok());
    };
    ["first", "second"].into_iter().for_each(|data| deliver(&lost, data));
    ["begun", "third", "fourth"].into_iter().for_each(|data| deliver(&heir, data));
    let take = || Some(heir.take()?.0.data);
    assert_eq!(take().as_deref(), Some(b"begun".as_slice()));
    let Remains { queued, mut reservation, .. } = lost.end(Error::Reset);
    assert_eq!(count(&lost.bequeath(heir.as_heir(), queued, &mut reservation)), 0);
    let taken: Vec<_> = std::iter::from_fn(take).collect();
    assert_eq!(taken, ["first", "second", "third", "fourth"]);
}

#[test]
fn what_is_withdrawn_after_it_went_to_another_outbox_gives_its_room_back_there() {
    let (lost, budget) = outbox(ROOMY, 1_000, ROOMY);
    let heir = Arc::new(Outbox::new(lost.limits, budget.clone()));
    let (message, confirmation) = Message::confirmed(Bytes::from_static(b"lost"));
    assert!(lost.deliver(message).is_ok());
    let Remains { queued, mut reservation, .. } = lost.end(Error::Reset);
    assert_eq!(count(&lost.bequeath(heir.as_heir(), queued, &mut reservation)), 0);
    assert!(confirmation.withdraw(Error::SendTimeout).is_some());
    // All that its sender knows is where it was.
    lost.note_withdrawal();
    assert_eq!(budget.used(), Load::default());
    assert!(heir.is_idle());
}

#[test]
fn small_messages_join_a_batch_and_come_out_in_their_order() {
    let (outbox, _) = outbox(ROOMY, 1_000, ROOMY);
    for bytes in [3, 0, 5] {
        assert_eq!(outbox.push(message(bytes)), Ok(()));
    }
    assert_eq!(outbox.next_bytes(), Some(3));
    assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(3));
    let piece = outbox.take_piece(1_000, 1_000);
    assert_eq!(piece.len(), 1);
    assert_eq!(piece[0].load(), Load { messages: 2, bytes: 5 });
    outbox.restore(piece.into_iter());
    assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(0));
    assert_eq!(outbox.take().map(|(m, _)| m.len()), Some(5));
    assert!(outbox.take().is_none());
}

#[test]
fn a_withdrawn_message_is_passed_over_and_gives_its_room_back() {
    let (outbox, budget) = outbox(Load { messages: 2, bytes: 100 }, 100, ROOMY);
    let (first, confirmation) = Message::confirmed(Bytes::from_static(b"first"));
    assert!(outbox.deliver(first).is_ok());
    assert_eq!(outbox.push(message(1)), Ok(()));
    assert_eq!(outbox.push(message(1)), Err(Error::QueueFull));
    assert!(confirmation.withdraw(Error::SendTimeout).is_some());
    outbox.note_withdrawal();
    assert_eq!(outbox.push(message(1)), Ok(()));
    assert_eq!(outbox.take_piece(100, 100)[0].load(), Load { messages: 2, bytes: 2 });
    assert_eq!(budget.used(), Load { messages: 2, bytes: 2 });
}

#[test]
fn no_other_message_is_taken_than_the_one_that_was_measured() {
    let (outbox, _) = outbox(ROOMY, 1_000, ROOMY);
    let (small, confirmation) = Message::confirmed(Bytes::from_static(b"small"));
    assert!(outbox.deliver(small).is_ok());
    assert_eq!(outbox.push(message(900)), Ok(()));
    let measured = outbox.next_bytes().expect("it is there");
    assert!(confirmation.withdraw(Error::SendTimeout).is_some());
    assert!(outbox.take_of(measured).is_none());
    assert_eq!(outbox.outstanding(), Load { messages: 1, bytes: 900 });
    assert_eq!(outbox.take_of(900).map(|(m, _)| m.len()), Some(900));
}

#[tokio::test]
async fn messages_pile_up_until_enough_are_there_or_somebody_waits() {
    let (outbox, _) = outbox(ROOMY, 10, ROOMY);
    let outbox = Arc::new(outbox);
    let late = Instant::now() + std::time::Duration::from_secs(60);
    assert_eq!(outbox.push(message(1)), Ok(()));
    let piling = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.pile(5, late).await }
    });
    tokio::task::yield_now().await;
    assert_eq!(outbox.push(message(4)), Ok(()));
    piling.await.expect("piled up");
    let piling = tokio::spawn({
        let outbox = outbox.clone();
        async move { outbox.pile(100, late).await }
    });
    tokio::task::yield_now().await;
    assert!(matches!(outbox.send(message(9)), Ok(Sent::Waiting(_))));
    piling.await.expect("somebody waits");
}
