%%% The streams of a pool's connections: the pooled one, which carries messages, and those of plain
%%% bytes that a caller opens on the same connection. Streams between a caller's own connections
%%% are in quic_stream_SUITE and quic_read_SUITE.
-module(pool_stream_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(POOL, macula_gateway_mesh).
-define(MIB, 1_048_576).
%% More than a peer's transport takes of one stream while its application reads nothing.
-define(TOO_MUCH, 4 * ?MIB).
%% What mode `reset' of the peer resets and stops with.
-define(RESET_CODE, 7).

suite() ->
    [{timetrap, {seconds, 90}}].

all() ->
    [
        % The pooled stream
        sends_binaries_and_iodata_each_as_one_message,
        sends_large_messages_whole,
        sends_parts_of_binaries_and_binaries_that_become_garbage,
        sends_from_many_processes_arrive_once_each,
        send_is_ok_once_the_message_is_accepted,
        send_waits_above_the_watermark_until_the_peer_reads,
        waiting_senders_proceed_in_their_order,
        a_sender_that_dies_waiting_has_sent_nothing,
        async_send_never_waits,
        async_send_does_not_overtake_a_waiting_sender,
        async_send_is_refused_when_the_whole_pool_is_full,
        a_peers_watermark_is_low_while_others_have_much_outstanding,
        a_message_above_the_limit_is_too_large,
        the_queue_limit_in_messages_holds_for_sends,
        a_stream_tells_that_its_node_was_removed,
        a_stream_tells_that_its_connection_was_evicted,
        a_stream_tells_that_the_pool_was_stopped,
        a_stream_tells_with_which_code_the_peer_closed,
        a_stream_tells_that_the_peer_is_silent,
        a_stream_outlives_a_server_that_was_killed_only_as_an_error,
        a_waiting_sender_is_told_that_the_connection_was_lost,
        a_closed_stream_sends_nothing_more,
        closing_a_stream_leaves_its_connection_and_its_messages_alone,
        a_closed_stream_is_replaced_on_the_same_connection,
        closing_a_connection_takes_it_out_of_the_pool,
        peername_is_the_peers_address_for_as_long_as_there_is_a_handle,

        % Streams of plain bytes
        an_opened_stream_carries_plain_bytes,
        the_bytes_of_an_opened_stream_arrive_in_order,
        closing_an_opened_stream_sends_the_rest_and_fin,
        an_opened_stream_is_finished_when_its_owner_dies,
        an_opened_stream_is_finished_when_its_handle_is_garbage,
        an_opened_stream_is_known_to_its_connection,
        messages_go_past_an_opened_stream,
        opening_waits_for_the_peers_credit,
        opening_fails_on_a_connection_that_is_gone,
        opening_waits_no_longer_than_the_connection_lives,
        opening_is_given_up_when_the_node_is_removed,
        an_opened_stream_waits_for_its_reader_and_refuses_without_waiting,
        an_opened_stream_tells_that_the_peer_stopped_it,
        an_opened_stream_ends_with_its_connection,

        % Handles
        anything_but_a_handle_is_a_badarg,
        data_that_is_no_iodata_is_a_badarg,
        leaves_no_messages_behind
    ].

init_per_testcase(_Case, Config) ->
    ok = mesh_ct:begin_test(),
    Config.

end_per_testcase(_Case, _Config) ->
    mesh_ct:end_test(),
    ok.

%%% The pooled stream

sends_binaries_and_iodata_each_as_one_message(_Config) ->
    % Protocol code builds its frames as nested lists.
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(mesh_ct:start_pool(), Peer),
    <<Head:8/binary, Tail/binary>> = Frame = mesh_peer:frame(0, 50),
    Forms = [Frame, [Frame], [Head, [[], [Tail]]], [binary_to_list(Head) | Tail], [], <<>>],
    [
        begin
            ok = Send(Stream, Data),
            mesh_peer:wait(Peer, messages, Count),
            Whole = iolist_to_binary(Data),
            ?assertEqual({payload, Whole}, mesh_peer:command(Peer, "last_payload"))
        end
     || {Count, {Send, Data}} <- lists:enumerate([
            {Send, Data}
         || Send <- [fun macula_quic:send/2, fun macula_quic:async_send/2],
            Data <- Forms
        ])
    ],
    ?assertMatch(#{streams := 12, corrupt := 0}, mesh_peer:stats(Peer)).

sends_large_messages_whole(_Config) ->
    % State transfers between nodes are of this size.
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(mesh_ct:start_pool(), Peer),
    [ok = macula_quic:send(Stream, mesh_peer:frame(Index, ?MIB)) || Index <- lists:seq(0, 9)],
    Stats = mesh_peer:wait(Peer, messages, 10),
    ?assertMatch(#{streams := 10, distinct := 10, corrupt := 0}, Stats),
    % Header and payload.
    ?assertEqual(10 * (8 + ?MIB), maps:get(bytes, Stats)).

sends_parts_of_binaries_and_binaries_that_become_garbage(_Config) ->
    % Large binaries are not copied: what is sent must be what it was when it was handed over.
    Peer = mesh_ct:start_peer(["--mode", "slow:2000000"]),
    Stream = mesh_ct:connect(mesh_ct:start_pool(), Peer),
    Sizes = [100, 4_095 - 8, 4_096 - 8, 4_097, 65_537, 200_000],
    Forms = [fun part/1, fun part_within_bytes/1, fun made_by_adding/1],
    Payloads = lists:enumerate(0, [{Form, Size} || Form <- Forms, Size <- Sizes]),
    Task = mesh_ct:start_task(fun() ->
        Sent = [Form(mesh_peer:frame(Index, Size)) || {Index, {Form, Size}} <- Payloads],
        [ok = macula_quic:send(Stream, Data) || Data <- Sent],
        % What was the end of a binary's memory is added to: there, or where there is more room.
        _ = [byte_size(<<Data/binary, 0:8_000_000>>) || Data <- Sent],
        erlang:garbage_collect(),
        ok
    end),
    ?assertEqual(ok, mesh_ct:await(Task)),
    % The memory is used again meanwhile.
    [binary:copy(<<255>>, Size) || Size <- Sizes, _ <- lists:seq(1, 20)],
    Stats = mesh_peer:wait(Peer, messages, length(Payloads)),
    ?assertMatch(#{distinct := 18, corrupt := 0}, Stats).

part(Frame) ->
    Length = byte_size(Frame),
    <<_, Part:Length/binary, _/binary>> = <<0, Frame/binary, 0>>,
    Part.

%% The VM copies it when it is looked at.
part_within_bytes(Frame) ->
    Length = byte_size(Frame),
    <<_:3, Part:Length/binary, _/bits>> = <<0:3, Frame/binary, 0:5>>,
    Part.

%% There is room behind it in its memory, for more to be added.
made_by_adding(Frame) ->
    Half = byte_size(Frame) div 2,
    <<First:Half/binary, Rest/binary>> = Frame,
    lists:foldl(fun(Part, Whole) -> <<Whole/binary, Part/binary>> end, <<>>, [First, Rest]).

sends_from_many_processes_arrive_once_each(_Config) ->
    % The pub/sub router of a node sends from every publisher's process.
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(mesh_ct:start_pool(), Peer),
    Send = fun(Index) -> ok = macula_quic:send(Stream, mesh_peer:frame(Index, 100)) end,
    Tasks = [
        mesh_ct:start_task(fun() -> lists:foreach(Send, lists:seq(From, From + 99)) end)
     || From <- lists:seq(0, 4_900, 100)
    ],
    [ok = mesh_ct:await(Task) || Task <- Tasks],
    Stats = mesh_peer:wait(Peer, messages, 5_000),
    ?assertMatch(#{distinct := 5_000, duplicates := 0, corrupt := 0, streams := 5_000}, Stats),
    ?assertEqual({missing, []}, mesh_peer:command(Peer, "missing 5000")).

send_is_ok_once_the_message_is_accepted(_Config) ->
    % A publisher must not wait for its slowest subscriber.
    Peer = mesh_ct:start_peer(["--mode", "silent_streams"]),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = macula_quic:send(Stream, binary:copy(<<0>>, ?TOO_MUCH)),
    ?assertEqual({1, ?TOO_MUCH}, outstanding()),
    ?assertEqual(0, mesh_ct:stat(messages_delivered)).

send_waits_above_the_watermark_until_the_peer_reads(_Config) ->
    % The memory of a node must not fill with what a slow peer has not read.
    {Peer, Stream} = connect_and_pause(#{send_watermark_bytes => 100_000}),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 200_000)),
    Next = waiting_sender(fun() -> macula_quic:send(Stream, mesh_peer:frame(1, 200_000)) end),
    ?assertEqual({0, #{}}, {mesh_ct:stat(messages_delivered), mesh_ct:stat(messages_dropped)}),
    mesh_peer:resume(Peer),
    ?assertEqual(ok, mesh_ct:await(Next)),
    ?assert(mesh_ct:stat(messages_delivered) >= 1),
    ?assertMatch(#{distinct := 2, corrupt := 0}, mesh_peer:wait(Peer, messages, 2)).

waiting_senders_proceed_in_their_order(_Config) ->
    % Nobody starves behind a process that sends more.
    {Peer, Stream} = connect_and_pause(#{send_watermark_bytes => 1_000}),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 150_000)),
    Self = self(),
    Tasks = [
        waiting_sender(fun() ->
            ok = macula_quic:send(Stream, mesh_peer:frame(Index, 150_000)),
            Self ! {accepted, Index}
        end)
     || Index <- lists:seq(1, 5)
    ],
    mesh_peer:resume(Peer),
    ?assertEqual([1, 2, 3, 4, 5], [receive {accepted, Index} -> Index end || _ <- Tasks]),
    ?assertMatch(#{distinct := 6, corrupt := 0}, mesh_peer:wait(Peer, messages, 6)).

a_sender_that_dies_waiting_has_sent_nothing(_Config) ->
    % Callers are killed by their own supervisors; those behind them must get their turn.
    {Peer, Stream} = connect_and_pause(#{send_watermark_bytes => 1_000}),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 500_000)),
    {Pid, Monitor, _} = waiting_sender(fun() -> macula_quic:send(Stream, <<"from the dead">>) end),
    Next = waiting_sender(fun() -> macula_quic:send(Stream, mesh_peer:frame(1, 8)) end),
    exit(Pid, kill),
    receive
        {'DOWN', Monitor, process, Pid, killed} -> ok
    end,
    mesh_peer:resume(Peer),
    ?assertEqual(ok, mesh_ct:await(Next)),
    ?assertMatch(#{messages := 2}, mesh_peer:wait(Peer, distinct, 2)).

async_send_never_waits(_Config) ->
    % Servers that must answer others cannot wait for one peer.
    Peer = mesh_ct:start_peer(["--mode", "silent_streams"]),
    Pool = mesh_ct:start_pool(#{send_watermark_bytes => 1_000}),
    Stream = mesh_ct:connect(Pool, Peer),
    ?assertEqual(ok, macula_quic:async_send(Stream, binary:copy(<<0>>, ?TOO_MUCH))),
    [
        ?assertEqual({error, send_queue_full}, macula_quic:async_send(Stream, Data))
     || Data <- [<<"m">>, ["m"], <<>>]
    ],
    ?assertEqual({1, ?TOO_MUCH}, outstanding()),
    ?assertEqual(#{send_queue_full => 3}, mesh_ct:stat(messages_dropped)).

async_send_does_not_overtake_a_waiting_sender(_Config) ->
    % A small message always finds a little room: it would keep the large one waiting for good.
    Peer = mesh_ct:start_peer(["--mode", "silent_streams"]),
    Pool = mesh_ct:start_pool(#{send_watermark_bytes => ?TOO_MUCH + 100}),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = macula_quic:send(Stream, binary:copy(<<0>>, ?TOO_MUCH)),
    Sender = waiting_sender(fun() -> macula_quic:send(Stream, binary:copy(<<0>>, 101)) end),
    % The message itself would fit.
    mesh_wait:eventually(true, fun() -> macula_quic:async_send(Stream, <<"m">>) =/= ok end),
    ?assertEqual({error, send_queue_full}, macula_quic:async_send(Stream, <<"m">>)),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Sender) end).

async_send_is_refused_when_the_whole_pool_is_full(_Config) ->
    % The bound over all peers is for the node's memory; towards the caller it is the same answer.
    [Full, Other] = [mesh_ct:start_peer(["--mode", "silent_streams"]) || _ <- [1, 2]],
    Options = #{pool_queue_max_bytes => ?TOO_MUCH + 100, send_watermark_bytes => 2 * ?TOO_MUCH},
    Pool = mesh_ct:start_pool(Options),
    ok = macula_quic:send(mesh_ct:connect(Pool, Full), binary:copy(<<0>>, ?TOO_MUCH)),
    Stream = mesh_ct:connect(Pool, Other),
    % A peer with nothing outstanding may always have one message.
    ?assertEqual(ok, macula_quic:async_send(Stream, binary:copy(<<0>>, ?TOO_MUCH))),
    ?assertEqual({error, send_queue_full}, macula_quic:async_send(Stream, <<"m">>)),
    ?assertEqual(#{pool_queue_full => 1}, mesh_ct:stat(messages_dropped)),
    mesh_ct:send(Pool, Other, <<"m">>),
    ?assertEqual(#{pool_queue_full => 2}, mesh_ct:stat(messages_dropped)).

a_peers_watermark_is_low_while_others_have_much_outstanding(_Config) ->
    % What many peers have waiting together fills a node's memory, and its caches before that.
    [Slow, Other] = [mesh_ct:start_peer(["--mode", "silent_streams"]) || _ <- [1, 2]],
    Pool = mesh_ct:start_pool(#{pool_send_watermark_bytes => ?TOO_MUCH, linger_ms => 0}),
    ok = macula_quic:send(mesh_ct:connect(Pool, Slow), binary:copy(<<0>>, ?TOO_MUCH)),
    Stream = mesh_ct:connect(Pool, Other),
    ?assertEqual(ok, macula_quic:async_send(Stream, binary:copy(<<0>>, ?MIB div 4))),
    ?assertEqual({error, send_queue_full}, macula_quic:async_send(Stream, <<"m">>)),
    ok = ?POOL:remove_connection(Pool, mesh_ct:node_id(Slow)),
    mesh_wait:eventually(ok, fun() -> macula_quic:async_send(Stream, <<"m">>) end),
    ?assertEqual(ok, macula_quic:async_send(Stream, binary:copy(<<0>>, ?MIB))).

a_message_above_the_limit_is_too_large(_Config) ->
    % Waiting for room that can never be would be waiting for good.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{queue_max_bytes => 1_024}),
    Stream = mesh_ct:connect(Pool, Peer),
    [
        begin
            ?assertEqual({error, message_too_large}, Send(Stream, binary:copy(<<0>>, 1_025))),
            ?assertEqual({error, message_too_large}, Send(Stream, [lists:duplicate(1_024, 0), 0]))
        end
     || Send <- [fun macula_quic:send/2, fun macula_quic:async_send/2]
    ],
    ?assertEqual(ok, macula_quic:send(Stream, mesh_peer:frame(0, 1_024 - 8))),
    ?assertMatch(#{messages := 1, streams := 1}, mesh_peer:wait(Peer, distinct, 1)).

the_queue_limit_in_messages_holds_for_sends(_Config) ->
    % Many small messages cost memory, too. A peer that stands still acknowledges none of them.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{queue_max_messages => 2, linger_ms => 0}),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:pause(Peer),
    ok = macula_quic:async_send(Stream, mesh_peer:frame(0, 8)),
    ok = macula_quic:async_send(Stream, mesh_peer:frame(1, 8)),
    ?assertEqual({error, send_queue_full}, macula_quic:async_send(Stream, <<>>)),
    Sender = mesh_ct:start_task(fun() -> macula_quic:send(Stream, mesh_peer:frame(2, 8)) end),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Sender) end),
    ?assertEqual(2, mesh_ct:stat(outstanding_messages)),
    ok = mesh_peer:resume(Peer),
    ?assertEqual(ok, mesh_ct:await(Sender)),
    ?assertMatch(#{distinct := 3, messages := 3}, mesh_peer:wait(Peer, distinct, 3)).

a_stream_tells_that_its_node_was_removed(_Config) ->
    % Who holds a stream of a node that has left can let go of it.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = ?POOL:remove_connection(Pool, mesh_ct:node_id(Peer)),
    assert_refused(removed, Stream),
    mesh_peer:wait(Peer, closed_by_peer, 1),
    assert_refused(removed, Stream).

a_stream_tells_that_its_connection_was_evicted(_Config) ->
    % Then asking for it again is all that is needed.
    [Peer, Other] = [mesh_ct:start_peer() || _ <- [1, 2]],
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 1}),
    Stream = mesh_ct:connect(Pool, Peer),
    mesh_ct:connect(Pool, Other),
    assert_refused(evicted, Stream),
    mesh_peer:wait(Peer, closed_by_peer, 1),
    assert_refused(evicted, Stream),
    ?assertEqual(ok, macula_quic:send(mesh_ct:connect(Pool, Peer), mesh_peer:frame(0, 8))),
    mesh_peer:wait(Peer, distinct, 1).

a_stream_tells_that_the_pool_was_stopped(_Config) ->
    % Handles outlive the pool in the state of other processes.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = ?POOL:stop(Pool),
    assert_refused(pool_closed, Stream).

a_stream_tells_with_which_code_the_peer_closed(_Config) ->
    % Nodes tell by the code why they go.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    mesh_peer:wait(Peer, connections_opened, 1),
    {closed, 1} = mesh_peer:command(Peer, "close 4611686018427387903"),
    mesh_wait:eventually(0, fun() -> ?POOL:pool_size(Pool) end),
    % The greatest code there is (RFC 9000, section 16).
    assert_refused({closed_by_peer, 4_611_686_018_427_387_903}, Stream).

a_stream_tells_that_the_peer_is_silent(_Config) ->
    % A peer without power says nothing; its callers must hear of it.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{idle_timeout_ms => 600, keep_alive_interval_ms => 100}),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = mesh_peer:kill(Peer),
    mesh_wait:eventually(0, fun() -> ?POOL:pool_size(Pool) end),
    assert_refused(idle_timeout, Stream).

a_stream_outlives_a_server_that_was_killed_only_as_an_error(_Config) ->
    % No handle keeps a connection that no server answers for any more.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    exit(Pool, kill),
    mesh_peer:wait(Peer, closed_by_peer, 1),
    assert_refused(pool_closed, Stream).

a_waiting_sender_is_told_that_the_connection_was_lost(_Config) ->
    % It would wait for good. Or its message is accepted after all, for the next connection.
    Peer = mesh_ct:start_peer(["--mode", "silent_streams"]),
    Pool = mesh_ct:start_pool(#{send_watermark_bytes => 1}),
    Stream = mesh_ct:connect(Pool, Peer),
    ok = macula_quic:send(Stream, binary:copy(<<0>>, ?TOO_MUCH)),
    Senders = [
        waiting_sender(fun() -> macula_quic:send(Stream, mesh_peer:frame(Index, 8)) end)
     || Index <- lists:seq(0, 4)
    ],
    mesh_peer:wait(Peer, connections_opened, 1),
    ok = mesh_peer:command(Peer, "mode count"),
    {closed, 1} = mesh_peer:command(Peer, "close 3"),
    Answers = lists:enumerate(0, [mesh_ct:await(Sender) || Sender <- Senders]),
    Refused = [Index || {Index, {error, {closed_by_peer, 3}}} <- Answers],
    Accepted = [Index || {Index, ok} <- Answers],
    ?assertEqual({5, true}, {length(Refused) + length(Accepted), Refused =/= []}, Answers),
    mesh_peer:wait(Peer, distinct, length(Accepted)),
    ?assertEqual({missing, Refused}, mesh_peer:command(Peer, "missing 5")),
    % The first was under way.
    mesh_wait:eventually(1, fun() -> mesh_ct:stat(messages_unconfirmed) end),
    ?assertEqual(1 + length(Accepted), mesh_ct:stat(messages_accepted)).

a_closed_stream_sends_nothing_more(_Config) ->
    % Whoever closed it made up his mind.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    ?assertEqual(ok, macula_quic:close(Stream)),
    assert_refused(closed, Stream),
    ?assertEqual(ok, macula_quic:close(Stream)).

closing_a_stream_leaves_its_connection_and_its_messages_alone(_Config) ->
    % Others use the connection; what was accepted will be sent.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    [ok = macula_quic:send(Stream, mesh_peer:frame(Index, 1_000)) || Index <- lists:seq(0, 99)],
    ok = macula_quic:close(Stream),
    mesh_ct:send(Pool, Peer, mesh_peer:frame(100, 8)),
    Stats = mesh_peer:wait(Peer, distinct, 101),
    ?assertMatch(#{connections_opened := 1, connections_closed := 0, streams_reset := 0}, Stats),
    ?assertEqual(1, ?POOL:pool_size(Pool)).

a_closed_stream_is_replaced_on_the_same_connection(_Config) ->
    % A new dial for a new stream would be waste.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Closed = mesh_ct:connect(Pool, Peer),
    #{connection := Connection} = info(Pool, Peer),
    ok = macula_quic:close(Closed),
    Fresh = mesh_ct:connect(Pool, Peer),
    ?assertNotEqual(Closed, Fresh),
    ?assertEqual(Fresh, mesh_ct:connect(Pool, Peer)),
    ?assertMatch(#{connection := Connection, stream := Fresh}, info(Pool, Peer)),
    ?assertEqual(ok, macula_quic:send(Fresh, mesh_peer:frame(0, 8))),
    ?assertMatch(#{connections_opened := 1}, mesh_peer:wait(Peer, distinct, 1)),
    assert_refused(closed, Closed).

closing_a_connection_takes_it_out_of_the_pool(_Config) ->
    % Whoever knows that a peer is of no use any more can say so with what he has at hand.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{linger_ms => 20_000}),
    Stream = mesh_ct:connect(Pool, Peer),
    #{connection := Connection} = info(Pool, Peer),
    [ok = macula_quic:send(Stream, mesh_peer:frame(Index, 1_000)) || Index <- lists:seq(0, 99)],
    ?assertEqual(ok, macula_quic:close(Connection)),
    assert_refused(closed, Stream),
    Stats = mesh_peer:wait(Peer, closed_by_peer, 1),
    ?assertMatch(#{distinct := 100, close_codes := #{0 := 1}}, Stats),
    mesh_wait:eventually(0, fun() -> ?POOL:pool_size(Pool) end),
    ?assertEqual(ok, macula_quic:close(Connection)),
    ?assertEqual(ok, macula_quic:send(mesh_ct:connect(Pool, Peer), mesh_peer:frame(100, 8))),
    mesh_peer:wait(Peer, distinct, 101).

peername_is_the_peers_address_for_as_long_as_there_is_a_handle(_Config) ->
    % Logs name the peer, most of all when it has gone.
    Peer = mesh_ct:start_peer(),
    V6 = mesh_ct:start_peer(["--address", "::1"]),
    Pool = mesh_ct:start_pool(),
    Address = mesh_peer:address(Peer),
    Stream = mesh_ct:connect(Pool, Peer),
    #{connection := Connection} = info(Pool, Peer),
    {ok, Opened} = macula_quic:open_stream(Connection),
    Handles = [Stream, Connection, Opened],
    [?assertEqual({ok, Address}, macula_quic:peername(Handle)) || Handle <- Handles],
    V6Address = {{0, 0, 0, 0, 0, 0, 0, 1}, mesh_peer:port(V6)},
    {ok, V6Stream} = ?POOL:get_or_create_connection(Pool, <<"v6">>, V6Address),
    ?assertEqual({ok, V6Address}, macula_quic:peername(V6Stream)),
    ok = ?POOL:stop(Pool),
    [?assertEqual({ok, Address}, macula_quic:peername(Handle)) || Handle <- Handles].

%%% Streams of plain bytes

an_opened_stream_carries_plain_bytes(_Config) ->
    % A transfer that is no message of the protocol has a stream of its own, whatever is sent when.
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:open_stream(mesh_ct:start_pool(), Peer),
    <<First:10/binary, Second:20/binary, Rest/binary>> = Frame = mesh_peer:frame(0, 100),
    ok = macula_quic:send(Stream, First),
    ok = macula_quic:async_send(Stream, [binary_to_list(Second)]),
    ok = macula_quic:send(Stream, Rest),
    ?assertMatch(#{messages := 0}, mesh_peer:wait(Peer, streams, 1)),
    ok = macula_quic:close(Stream),
    Stats = mesh_peer:wait(Peer, messages, 1),
    ?assertMatch(#{streams := 1, framed := 1, bytes := 108, streams_reset := 0}, Stats),
    ?assertEqual({payload, Frame}, mesh_peer:command(Peer, "last_payload")).

the_bytes_of_an_opened_stream_arrive_in_order(_Config) ->
    % That is what a stream is for; the peer checks each byte of this one.
    Peer = mesh_ct:start_peer(["--mode", "slow:10000000"]),
    Pool = mesh_ct:start_pool(#{send_watermark_bytes => 50_000}),
    Stream = mesh_ct:open_stream(Pool, Peer),
    Frame = mesh_peer:frame(0, 2 * ?MIB),
    [ok = macula_quic:send(Stream, Part) || Part <- parts(Frame, 10_007)],
    ok = macula_quic:close(Stream),
    ?assertMatch(#{framed := 1, corrupt := 0}, mesh_peer:wait(Peer, messages, 1)).

closing_an_opened_stream_sends_the_rest_and_fin(_Config) ->
    % FIN is how the reader knows that it has everything.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(#{linger_ms => 20_000}),
    Stream = mesh_ct:open_stream(Pool, Peer),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, ?MIB)),
    ?assertEqual(ok, macula_quic:close(Stream)),
    assert_refused(closed, Stream),
    ?assertEqual(ok, macula_quic:close(Stream)),
    Stats = mesh_peer:wait(Peer, messages, 1),
    ?assertMatch(#{framed := 1, streams_reset := 0, connections_closed := 0}, Stats),
    Empty = mesh_ct:open_stream(Pool, Peer),
    ok = macula_quic:close(Empty),
    mesh_peer:wait(Peer, messages, 2).

an_opened_stream_is_finished_when_its_owner_dies(_Config) ->
    % Nobody else will, and the peer's credit would be gone.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Self = self(),
    mesh_ct:connect(Pool, Peer),
    Owner = mesh_ct:start_task(fun() ->
        Stream = mesh_ct:open_stream(Pool, Peer),
        ok = macula_quic:send(Stream, mesh_peer:frame(0, 10_000)),
        % A handle elsewhere does not keep it open.
        Self ! {stream, Stream},
        exit(crash)
    end),
    ?assertEqual({exit, crash}, mesh_ct:await(Owner)),
    Stats = mesh_peer:wait(Peer, messages, 1),
    ?assertMatch(#{framed := 1, streams_reset := 0, connections_closed := 0}, Stats),
    receive
        {stream, Stream} -> assert_refused(closed, Stream)
    end,
    mesh_wait:eventually(0, fun() -> maps:get(streams, info(Pool, Peer)) end).

an_opened_stream_is_finished_when_its_handle_is_garbage(_Config) ->
    % A process that lives long must not need to close what it has forgotten.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    mesh_ct:connect(Pool, Peer),
    {Pid, _, _} = Owner = mesh_ct:start_task(fun() ->
        forget(Pool, Peer),
        erlang:garbage_collect(),
        receive
            stop -> ok
        end
    end),
    Stats = mesh_peer:wait(Peer, messages, 1),
    ?assertMatch(#{framed := 1, streams_reset := 0, connections_closed := 0}, Stats),
    mesh_wait:eventually(0, fun() -> maps:get(streams, info(Pool, Peer)) end),
    Pid ! stop,
    ?assertEqual(ok, mesh_ct:await(Owner)).

forget(Pool, Peer) ->
    ok = macula_quic:send(mesh_ct:open_stream(Pool, Peer), mesh_peer:frame(0, 10_000)).

an_opened_stream_is_known_to_its_connection(_Config) ->
    % A connection with a transfer on it is in use, and must not go before an idle one.
    [Used, Idle, New] = [mesh_ct:start_peer() || _ <- lists:seq(1, 3)],
    Pool = mesh_ct:start_pool(#{max_mesh_connections => 2}),
    Stream = mesh_ct:open_stream(Pool, Used),
    ?assertMatch(#{state := busy, streams := 1}, info(Pool, Used)),
    [mesh_ct:connect(Pool, Peer) || Peer <- [Idle, New]],
    mesh_peer:wait(Idle, closed_by_peer, 1),
    ok = macula_quic:send(Stream, mesh_peer:frame(0, 8)),
    ok = macula_quic:close(Stream),
    mesh_peer:wait(Used, distinct, 1),
    mesh_wait:eventually(idle, fun() -> maps:get(state, info(Pool, Used)) end),
    ?assertMatch(#{streams := 0}, info(Pool, Used)).

messages_go_past_an_opened_stream(_Config) ->
    % A long transfer must not hold up the messages beside it.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Opened = mesh_ct:open_stream(Pool, Peer),
    ok = macula_quic:send(Opened, <<"begun">>),
    mesh_peer:wait(Peer, streams, 1),
    mesh_ct:send(Pool, Peer, mesh_peer:frame(0, 8)),
    ok = macula_quic:send(mesh_ct:connect(Pool, Peer), mesh_peer:frame(1, 8)),
    Stats = mesh_peer:wait(Peer, distinct, 2),
    ?assertMatch(#{streams := 3, messages := 2, connections_opened := 1}, Stats),
    % Until here there is a handle to it.
    ok = macula_quic:close(Opened),
    mesh_peer:wait(Peer, messages, 3).

opening_waits_for_the_peers_credit(_Config) ->
    % As send/2 does for room: the caller is held up, not told to try again.
    Peer = mesh_ct:start_peer(["--bidi-streams", "2"]),
    Pool = mesh_ct:start_pool(),
    [First, Second] = [mesh_ct:open_stream(Pool, Peer) || _ <- [1, 2]],
    #{connection := Connection} = info(Pool, Peer),
    Third = mesh_ct:start_task(fun() ->
        {ok, Stream} = macula_quic:open_stream(Connection),
        ok = macula_quic:send(Stream, mesh_peer:frame(3, 8)),
        ok = macula_quic:close(Stream)
    end),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Third) end),
    ok = macula_quic:send(First, mesh_peer:frame(1, 8)),
    ?assertMatch(#{messages := 0}, mesh_peer:wait(Peer, streams, 1)),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Third) end),
    ok = macula_quic:close(First),
    ?assertEqual(ok, mesh_ct:await(Third)),
    ?assertMatch(#{messages := 2}, mesh_peer:wait(Peer, distinct, 2)),
    ok = macula_quic:close(Second),
    mesh_peer:wait(Peer, messages, 3).

opening_fails_on_a_connection_that_is_gone(_Config) ->
    % By the same reasons as sending does.
    [Removed, Evicted, Closed, Stopped] = [mesh_ct:start_peer() || _ <- lists:seq(1, 4)],
    Pool = mesh_ct:start_pool(),
    Connections = [
        begin
            mesh_ct:connect(Pool, Peer),
            mesh_peer:wait(Peer, connections_opened, 1),
            maps:get(connection, info(Pool, Peer))
        end
     || Peer <- [Removed, Evicted, Closed, Stopped]
    ],
    ok = ?POOL:remove_connection(Pool, mesh_ct:node_id(Removed)),
    {closed, 1} = mesh_peer:command(Closed, "close 5"),
    mesh_wait:eventually(2, fun() -> ?POOL:pool_size(Pool) end),
    ok = ?POOL:set_max_connections(Pool, 1),
    Opened = fun() -> [macula_quic:open_stream(Connection) || Connection <- Connections] end,
    ?assertMatch(
        [{error, removed}, {error, evicted}, {error, {closed_by_peer, 5}}, {ok, _}], Opened()
    ),
    ok = ?POOL:stop(Pool),
    ?assertEqual(
        [{error, Reason} || Reason <- [removed, evicted, {closed_by_peer, 5}, pool_closed]],
        Opened()
    ).

opening_waits_no_longer_than_the_connection_lives(_Config) ->
    % A caller that waits for credit hears of the end of it all.
    Peer = mesh_ct:start_peer(["--bidi-streams", "1"]),
    Pool = mesh_ct:start_pool(),
    First = mesh_ct:open_stream(Pool, Peer),
    #{connection := Connection} = info(Pool, Peer),
    Second = mesh_ct:start_task(fun() -> macula_quic:open_stream(Connection) end),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Second) end),
    mesh_peer:wait(Peer, connections_opened, 1),
    {closed, 1} = mesh_peer:command(Peer, "close 5"),
    ?assertEqual({error, {closed_by_peer, 5}}, mesh_ct:await(Second)),
    mesh_wait:eventually(true, fun() -> macula_quic:async_send(First, <<"m">>) =/= ok end).

opening_is_given_up_when_the_node_is_removed(_Config) ->
    % The same when we end it ourselves.
    Peer = mesh_ct:start_peer(["--bidi-streams", "1"]),
    Pool = mesh_ct:start_pool(#{linger_ms => 100}),
    First = mesh_ct:open_stream(Pool, Peer),
    #{connection := Connection} = info(Pool, Peer),
    Second = mesh_ct:start_task(fun() -> macula_quic:open_stream(Connection) end),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Second) end),
    ok = ?POOL:remove_connection(Pool, mesh_ct:node_id(Peer)),
    ?assertEqual({error, removed}, mesh_ct:await(Second)),
    mesh_wait:eventually(true, fun() -> macula_quic:async_send(First, <<"m">>) =/= ok end).

an_opened_stream_waits_for_its_reader_and_refuses_without_waiting(_Config) ->
    % Flow control of one transfer is the sender's own business.
    Peer = mesh_ct:start_peer(["--mode", "silent_streams"]),
    Pool = mesh_ct:start_pool(#{send_watermark_bytes => 1_000, queue_max_bytes => ?TOO_MUCH}),
    Stream = mesh_ct:open_stream(Pool, Peer),
    ok = macula_quic:send(Stream, binary:copy(<<0>>, ?TOO_MUCH)),
    ?assertEqual({error, send_queue_full}, macula_quic:async_send(Stream, <<"m">>)),
    TooLarge = binary:copy(<<0>>, ?TOO_MUCH + 1),
    ?assertEqual({error, message_too_large}, macula_quic:send(Stream, TooLarge)),
    Sender = waiting_sender(fun() -> macula_quic:send(Stream, <<"m">>) end),
    % Messages are not held up by it.
    ?assertEqual(ok, macula_quic:async_send(mesh_ct:connect(Pool, Peer), <<"m">>)),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Sender) end),
    mesh_peer:wait(Peer, connections_opened, 1),
    {closed, 1} = mesh_peer:command(Peer, "close 6"),
    ?assertEqual({error, {closed_by_peer, 6}}, mesh_ct:await(Sender)).

an_opened_stream_tells_that_the_peer_stopped_it(_Config) ->
    % The reader does not want the rest, but the connection is as good as before.
    Peer = mesh_ct:start_peer(["--mode", "reset"]),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:open_stream(Pool, Peer),
    Send = fun() -> macula_quic:send(Stream, binary:copy(<<0>>, 1_000)) end,
    mesh_wait:eventually(true, fun() -> Send() =/= ok end),
    assert_refused({stopped, ?RESET_CODE}, Stream),
    ?assertEqual(1, ?POOL:pool_size(Pool)),
    ?assert(is_reference(mesh_ct:open_stream(Pool, Peer))).

an_opened_stream_ends_with_its_connection(_Config) ->
    % Its holder must not feed a stream that leads nowhere.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:open_stream(Pool, Peer),
    ok = macula_quic:send(Stream, <<"begun">>),
    mesh_peer:wait(Peer, streams, 1),
    {closed, 1} = mesh_peer:command(Peer, "close 8"),
    mesh_wait:eventually(true, fun() -> macula_quic:send(Stream, <<"more">>) =/= ok end),
    assert_refused({closed_by_peer, 8}, Stream).

%%% Handles

anything_but_a_handle_is_a_badarg(_Config) ->
    % A programming error shows as one, and takes nothing else along.
    Peer = mesh_ct:start_peer(),
    Pool = mesh_ct:start_pool(),
    Stream = mesh_ct:connect(Pool, Peer),
    #{connection := Connection} = info(Pool, Peer),
    Junk = [make_ref(), undefined, 42, <<"stream">>, [], {Stream}, Pool, atomics:new(1, [])],
    [
        begin
            ?assertError(badarg, macula_quic:send(Handle, <<"m">>)),
            ?assertError(badarg, macula_quic:async_send(Handle, <<"m">>))
        end
     || Handle <- [Connection | Junk]
    ],
    [?assertError(badarg, macula_quic:open_stream(Handle)) || Handle <- [Stream | Junk]],
    [?assertEqual(ok, macula_quic:close(Handle)) || Handle <- Junk],
    [?assertError(badarg, macula_quic:peername(Handle)) || Handle <- Junk],
    ?assertEqual(ok, macula_quic:send(Stream, mesh_peer:frame(0, 8))),
    mesh_peer:wait(Peer, distinct, 1).

data_that_is_no_iodata_is_a_badarg(_Config) ->
    % Nor is half of a wrong list sent.
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(mesh_ct:start_pool(), Peer),
    [
        ?assertError(badarg, Send(Stream, Data))
     || Send <- [fun macula_quic:send/2, fun macula_quic:async_send/2],
        Data <- [atom, 42, [256], ["a", b], <<1:1>>, [<<1:1>>], {<<"m">>}, [<<"m">> | 1]]
    ],
    ?assertEqual(0, mesh_ct:stat(messages_accepted)),
    ?assertMatch(#{streams := 0}, mesh_peer:stats(Peer)).

leaves_no_messages_behind(_Config) ->
    % Servers that call from their own process would meet the strays in handle_info/2.
    Peer = mesh_ct:start_peer(["--mode", "slow:1000000"]),
    Pool = mesh_ct:start_pool(#{send_watermark_bytes => 1_000}),
    Pooled = mesh_ct:connect(Pool, Peer),
    Opened = mesh_ct:open_stream(Pool, Peer),
    [
        ok = macula_quic:send(Stream, mesh_peer:frame(Index, 50_000))
     || {Index, Stream} <- [{0, Pooled}, {1, Opened}, {2, Pooled}, {3, Pooled}]
    ],
    ok = macula_quic:close(Opened),
    mesh_peer:wait(Peer, distinct, 4),
    ok = ?POOL:remove_connection(Pool, mesh_ct:node_id(Peer)),
    {error, removed} = macula_quic:send(Pooled, <<"m">>),
    mesh_wait:eventually(0, fun() -> mesh_ct:stat(tasks) end),
    ok = ?POOL:stop(Pool),
    ?assertEqual([], mesh_ct:flush()).

%%% What the tests share

info(Pool, Peer) ->
    {ok, Info} = ?POOL:get_connection_info(Pool, mesh_ct:node_id(Peer)),
    Info.

assert_refused(Reason, Stream) ->
    ?assertEqual({error, Reason}, macula_quic:send(Stream, <<"m">>)),
    ?assertEqual({error, Reason}, macula_quic:async_send(Stream, <<"m">>)).

outstanding() ->
    {mesh_ct:stat(outstanding_messages), mesh_ct:stat(outstanding_bytes)}.

%% A stream to a peer that reads nothing, and is not suspected to be dead for it, until the test
%% resumes it: a merely slow one may have read everything before a busy machine gets to look.
connect_and_pause(Options) ->
    Peer = mesh_ct:start_peer(),
    Stream = mesh_ct:connect(mesh_ct:start_pool(Options#{ack_timeout_ms => 0}), Peer),
    mesh_peer:pause(Peer),
    {Peer, Stream}.

%% A task whose send waits for room.
waiting_sender(Send) ->
    Task = mesh_ct:start_task(Send),
    mesh_wait:eventually(true, fun() -> mesh_ct:is_waiting(Task) end),
    Task.

parts(Binary, Size) when byte_size(Binary) > Size ->
    <<Part:Size/binary, Rest/binary>> = Binary,
    [Part | parts(Rest, Size)];
parts(Binary, _Size) ->
    [Binary].
