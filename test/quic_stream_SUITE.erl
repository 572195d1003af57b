%%% Streams of `macula_quic', from their first byte to their end: sending, accepting, the messages
%%% to owners and their order, resets and stops, ends, and flow control. Who reads them, and how,
%%% is in quic_read_SUITE. Both ends are ours, on loopback.
-module(quic_stream_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(WAIT_MS, 10_000).
-define(RACES, 1_000).
-define(MIB, 1_048_576).
%% How often in a row nothing more may have been sent, for it to be held.
-define(LOOKS, 10).
%% Flags of async_shutdown_stream/3.
-define(IMMEDIATE, 8).
-define(GRACEFUL, 1).
-define(ABORT_SEND, 2).
-define(ABORT_RECEIVE, 4).
-define(ABORT, 6).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [
        bytes_go_both_ways,
        iodata_of_every_shape_is_sent,
        a_timed_out_accept_stream_loses_no_stream,
        who_has_died_in_accept_stream_takes_no_stream_along,
        new_stream_comes_before_its_data,
        each_delivery_says_where_it_is_in_the_stream,
        the_end_comes_after_the_data_and_before_stream_closed,
        recv_at_the_end_gives_what_is_left_and_then_closed,
        a_reset_arrives_with_its_code,
        a_stop_arrives_with_its_code,
        a_stop_of_a_stream_that_is_read_arrives_with_its_code,
        send_shutdown_complete_tells_whether_all_arrived,
        who_closes_a_stream_is_told_of_its_end_whatever_has_ended_before,
        a_stopped_passive_stream_tells_its_end_to_who_closes_it,
        who_reads_to_the_end_after_its_own_is_told_of_both_once,
        who_closes_a_stream_on_which_only_the_peer_sends_is_told_of_its_end,
        closing_a_stream_sends_what_is_queued,
        a_slow_reader_gets_all_of_a_closed_stream,
        streams_that_had_arrived_when_the_connection_closed_are_read,
        streams_of_a_closed_connection_are_given_up_with_it_or_after_a_while,
        an_idle_sender_learns_that_its_connection_is_gone,
        losing_a_connection_under_load_ends_every_stream_once,
        who_has_ended_a_stream_is_told_of_the_loss_of_its_connection_though_he_does_not_read,
        a_stream_that_nobody_holds_is_closed,
        a_stream_that_nobody_holds_is_closed_once_its_owner_was_told_of_its_own_end,
        a_stream_whose_reader_has_died_is_held_for_nobody,
        streams_on_which_only_the_peer_sends_are_read_and_bounded,
        an_unread_stream_holds_the_peer
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> ok.

%%% Sending and asking

%% A request and its answer, on a stream of either side.
bytes_go_both_ways(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {Near, Far} = quic_ct:streams(Opener, Acceptor),
            ok = macula_quic:send(Near, <<"question">>),
            ?assertEqual(<<"question">>, quic_ct:read(Far, 8)),
            ok = macula_quic:async_send(Far, <<"answer">>),
            ?assertEqual(<<"answer">>, quic_ct:read(Near, 6))
        end
     || {Opener, Acceptor} <- [{Client, Server}, {Server, Client}]
    ].

%% Encoders make lists; large binaries pass without being copied.
iodata_of_every_shape_is_sent(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    Large = crypto:strong_rand_bytes(3 * ?MIB),
    Part = binary:part(Large, 1_000, 20_000),
    [
        begin
            spawn_link(fun() -> ok = macula_quic:send(Near, Data) end),
            Expected = iolist_to_binary(Data),
            ?assertEqual(Expected, quic_ct:read(Far, byte_size(Expected)))
        end
     || Data <- [[], <<>>, "text", [1, [<<2>>, "3" | <<4>>]], Large, Part, [Part, Part]]
    ],
    ?assertError(badarg, macula_quic:send(Near, [256])),
    ?assertError(badarg, macula_quic:send(Near, text)).

%% Servers poll with short timeouts: a request lost in between is a caller that waits for good.
a_timed_out_accept_stream_loses_no_stream(_Config) ->
    {Client, Server} = quic_ct:pair([{peer_bidi_stream_count, 65_536}], []),
    ?assertEqual({error, timeout}, macula_quic:accept_stream(Server, 0)),
    Opener = quic_ct:agent(),
    Opening = quic_ct:tell(Opener, fun() -> [open_numbered(Client, N) || N <- races()] end),
    Accepted = [number_of(poll_accept(Server)) || _ <- races()],
    ?assertEqual(races(), lists:sort(Accepted)),
    receive
        {Opening, Streams} -> ?assertEqual(?RACES, length(Streams))
    end,
    ?assertEqual({error, timeout}, macula_quic:accept_stream(Server, 0)).

open_numbered(Client, N) ->
    {ok, Stream} = macula_quic:open_stream(Client),
    ok = macula_quic:send(Stream, quic_ct:frame(<<N:32>>)),
    Stream.

poll_accept(Server) ->
    case macula_quic:accept_stream(Server, rand:uniform(2) - 1) of
        {ok, Stream} -> Stream;
        {error, timeout} -> poll_accept(Server)
    end.

number_of(Stream) ->
    {ok, <<_:8/binary, N:32>>} = macula_quic:recv(Stream, ?WAIT_MS),
    N.

%% Handlers crash while they wait. What then comes is for the next, with all that is in it, whether
%% that one has asked already or asks later.
who_has_died_in_accept_stream_takes_no_stream_along(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Waits = {current_function, {macula_quic, await, 4}},
    Accept = fun() -> macula_quic:accept_stream(Server, ?WAIT_MS) end,
    Read = fun() ->
        {ok, Far} = Accept(),
        macula_quic:recv(Far, ?WAIT_MS)
    end,
    Ask = fun(Agent, Work) ->
        Ref = quic_ct:tell(Agent, Work),
        mesh_wait:eventually(Waits, fun() -> process_info(Agent, current_function) end),
        Ref
    end,
    Async = fun(Agent, _Work) ->
        {ok, Server} = quic_ct:in(Agent, fun() -> macula_quic:async_accept_stream(Server, []) end)
    end,
    [
        begin
            [Dying, Next] = [quic_ct:agent(), quic_ct:agent()],
            _ = First(Dying, Accept),
            Early = [Ask(Next, Read) || When =:= early],
            quic_ct:give_up(Dying),
            {ok, Near} = macula_quic:open_stream(Client),
            ok = macula_quic:setopt(Near, active, true),
            ok = macula_quic:send(Near, quic_ct:frame(<<"whole">>)),
            ok = macula_quic:async_shutdown_stream(Near, ?GRACEFUL, 0),
            ?assertEqual({send_shutdown_complete, true}, quic_ct:next(Near)),
            [Ref] = Early ++ [quic_ct:tell(Next, Read) || When =:= late],
            receive
                {Ref, Result} -> ?assertEqual({ok, quic_ct:frame(<<"whole">>)}, Result)
            after ?WAIT_MS -> error({never_read, When})
            end
        end
     || First <- [Ask, Async], When <- [early, late]
    ].

%%% Messages

%% A handler cannot file data under a stream that it has not heard of.
new_stream_comes_before_its_data(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {ok, Server} = macula_quic:async_accept_stream(Server, []),
            {ok, Near} = macula_quic:open_stream(Client),
            ok = macula_quic:send(Near, quic_ct:frame(<<N:32>>)),
            ok = macula_quic:close(Near),
            {Far, Properties} = new_stream(),
            ?assertEqual(#{conn => Server, flags => 0}, Properties),
            quic_ct:none(Far),
            ok = macula_quic:setopt(Far, active, true),
            ?assertMatch({<<_:8/binary, N:32>>, _}, quic_ct:next(Far)),
            ?assertEqual({peer_send_shutdown, undefined}, quic_ct:next(Far))
        end
     || N <- lists:seq(1, 20)
    ],
    quic_ct:none(Server).

%% Offsets are how a receiver notices a gap that must not be there.
each_delivery_says_where_it_is_in_the_stream(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:setopt(Far, active, true),
    Sizes = [0, 1, 100, 70_000, 5],
    ok = macula_quic:send(Near, [quic_ct:frame(binary:copy(<<7>>, Size)) || Size <- Sizes]),
    lists:foldl(
        fun(Size, Offset) ->
            {Data, Detail} = quic_ct:next(Far),
            ?assertEqual(Size + 8, byte_size(Data)),
            Length = byte_size(Data),
            ?assertEqual(#{absolute_offset => Offset, len => Length, flags => 0}, Detail),
            Offset + Length
        end,
        1,
        Sizes
    ).

%% A handler that frees its state at stream_closed must have seen everything by then.
the_end_comes_after_the_data_and_before_stream_closed(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            ok = macula_quic:setopt(Far, active, true),
            ok = macula_quic:send(Near, binary:copy(<<1>>, 200_000)),
            ok = macula_quic:async_shutdown_stream(Near, ?GRACEFUL, 0),
            ?assertEqual(200_000, data_until(peer_send_shutdown, Far)),
            ok = macula_quic:async_shutdown_stream(Far, ?GRACEFUL, 0),
            ?assertEqual({send_shutdown_complete, true}, quic_ct:next(Far)),
            ?assertEqual(
                {stream_closed, #{
                    is_conn_shutdown => false, is_shutdown_by_app => false, status => ok
                }},
                quic_ct:next(Far)
            ),
            quic_ct:none(Far),
            ?assertEqual({error, closed}, macula_quic:recv(Near, ?WAIT_MS))
        end
     || _ <- lists:seq(1, 10)
    ].

%% How many bytes come before this message.
data_until(What, Stream) ->
    case quic_ct:next(Stream) of
        {What, undefined} -> 0;
        {Data, #{len := Length}} ->
            ?assertEqual(Length, byte_size(Data)),
            Length + data_until(What, Stream)
    end.

%% The last data and the end may come in one packet.
recv_at_the_end_gives_what_is_left_and_then_closed(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    ok = macula_quic:send(Near, <<"last">>),
    ok = macula_quic:close(Near),
    ?assertEqual({ok, <<"last">>}, macula_quic:recv(Far, ?WAIT_MS)),
    [?assertEqual({error, closed}, macula_quic:recv(Far, ?WAIT_MS)) || _ <- [1, 2]],
    {Back, Active} = quic_ct:raw_streams(),
    ok = macula_quic:setopt(Active, active, true),
    ok = macula_quic:send(Back, <<"last">>),
    ok = macula_quic:async_shutdown_stream(Back, ?GRACEFUL, 0),
    mesh_wait:eventually(2, fun() -> quic_ct:come(Active) end),
    ?assertEqual({ok, <<"last">>}, macula_quic:recv(Active, ?WAIT_MS)),
    ?assertEqual({error, closed}, macula_quic:recv(Active, ?WAIT_MS)).

%% RESET_STREAM: half a message must not look like a whole one, and says why.
a_reset_arrives_with_its_code(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {Near, Far} = quic_ct:streams(Client, Server),
    ok = macula_quic:setopt(Far, active, true),
    ok = macula_quic:async_shutdown_stream(Near, ?ABORT_SEND, 77),
    ?assertEqual({peer_send_aborted, 77}, quic_ct:next(Far)),
    ?assertEqual({error, closed}, macula_quic:send(Near, <<"more">>)),
    ?assertEqual({error, {peer_send_aborted, 77}}, macula_quic:recv(Far, ?WAIT_MS)),
    {Near2, Far2} = quic_ct:streams(Client, Server),
    ok = macula_quic:async_shutdown_stream(Near2, ?ABORT, 1 bsl 40),
    ?assertEqual({error, {peer_send_aborted, 1 bsl 40}}, macula_quic:recv(Far2, ?WAIT_MS)),
    %% While the stream is active, recv tells it too.
    {Near3, Far3} = quic_ct:streams(Client, Server),
    ok = macula_quic:setopt(Far3, active, true),
    ok = macula_quic:async_shutdown_stream(Near3, ?ABORT_SEND, 3),
    ?assertEqual({error, {peer_send_aborted, 3}}, macula_quic:recv(Far3, ?WAIT_MS)).

%% STOP_SENDING: a sender that goes on would waste its time. The other half goes on.
a_stop_arrives_with_its_code(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {ok, Near} = macula_quic:open_stream(Client),
    ok = macula_quic:setopt(Near, active, true),
    ok = macula_quic:send(Near, <<0>>),
    {ok, Far} = macula_quic:accept_stream(Server, ?WAIT_MS),
    ok = macula_quic:async_shutdown_stream(Far, ?ABORT_RECEIVE, 55),
    ?assertEqual({peer_receive_aborted, 55}, quic_ct:next(Near)),
    ?assertEqual({error, {stopped, 55}}, macula_quic:send(Near, <<"more">>)),
    ?assertEqual({error, closed}, macula_quic:recv(Far, ?WAIT_MS)),
    ?assertEqual(ok, macula_quic:send(Far, <<"still">>)),
    ?assertMatch({<<"still">>, _}, quic_ct:next(Near)).

%% The task that reads must carry the code, too.
a_stop_of_a_stream_that_is_read_arrives_with_its_code(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    [ok = macula_quic:setopt(Stream, active, true) || Stream <- [Near, Far]],
    ok = macula_quic:async_shutdown_stream(Far, ?ABORT_RECEIVE, 56),
    ?assertEqual({peer_receive_aborted, 56}, quic_ct:next(Near)),
    ?assertEqual({error, {stopped, 56}}, macula_quic:async_send(Near, <<"more">>)).

%% true: the peer has all of it. false: it was given up, and nobody may count on it.
send_shutdown_complete_tells_whether_all_arrived(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            ok = macula_quic:setopt(Near, active, true),
            ok = macula_quic:send(Near, <<"text">>),
            ok = macula_quic:async_shutdown_stream(Near, Flags, 0),
            ?assertEqual({send_shutdown_complete, IsGraceful}, quic_ct:next(Near)),
            ok = macula_quic:close(Far)
        end
     || {Flags, IsGraceful} <- [{?GRACEFUL, true}, {?ABORT_SEND, false}]
    ].

%%% Ends

%% An answer that is queued and closed behind at once must arrive whole.
closing_a_stream_sends_what_is_queued(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Data = crypto:strong_rand_bytes(?MIB),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            ok = macula_quic:send(Near, Data),
            ok = Close(Near),
            ?assertEqual({error, closed}, macula_quic:send(Near, <<"more">>)),
            ?assertEqual({error, closed}, macula_quic:recv(Near, ?WAIT_MS)),
            ?assertEqual({error, closed}, macula_quic:setopt(Near, active, true)),
            ?assert(Data =:= quic_ct:read(Far, ?MIB)),
            ?assertEqual({error, closed}, macula_quic:recv(Far, ?WAIT_MS)),
            mesh_wait:eventually(true, fun() -> macula_quic:send(Far, <<"x">>) =/= ok end)
        end
     || Close <- [fun macula_quic:close/1, fun macula_quic:close_stream/1]
    ].

%% On a slow link, or at a busy reader, an answer of a megabyte takes its time.
a_slow_reader_gets_all_of_a_closed_stream(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    Data = crypto:strong_rand_bytes(1_000_000),
    [ok = macula_quic:send(Near, Data) || _ <- [1, 2]],
    ok = macula_quic:close(Near),
    %% Longer than a pool lingers.
    receive
    after 1_500 -> ok
    end,
    ?assert(<<Data/binary, Data/binary>> =:= quic_ct:read(Far, 2_000_000)),
    ?assertEqual({error, closed}, macula_quic:recv(Far, ?WAIT_MS)).

%% They are acknowledged, so the peer takes them for read; on a busy machine that comes later.
streams_that_had_arrived_when_the_connection_closed_are_read(_Config) ->
    Texts = [<<N, 0:(8 * 1_000)>> || N <- lists:seq(1, 20)],
    {_Listener, Server} = close_behind(Texts),
    Read = fun(_) ->
        {ok, Stream} = macula_quic:accept_stream(Server, ?WAIT_MS),
        ok = macula_quic:setopt(Stream, packet, raw),
        quic_ct:read(Stream, 1_001)
    end,
    ?assertEqual(Texts, lists:map(Read, Texts)),
    ?assertEqual({error, closed}, macula_quic:accept_stream(Server, ?WAIT_MS)).

%% They hold memory and the client's place, and who floods a node closes his connections, too.
streams_of_a_closed_connection_are_given_up_with_it_or_after_a_while(_Config) ->
    [
        begin
            {Listener, Server} = close_behind([<<"text">>]),
            ?assertMatch(#{connections := 1}, macula_quic:listener_stats(Listener)),
            ok = GiveUp(Server),
            mesh_wait:eventually(0, fun() ->
                maps:get(connections, macula_quic:listener_stats(Listener))
            end),
            ?assertEqual({error, closed}, macula_quic:accept_stream(Server, ?WAIT_MS))
        end
     || GiveUp <- [fun macula_quic:close/1, fun(_Server) -> ok end]
    ].

%% A listener, and a connection that its peer has closed behind streams of these texts, each with
%% its end and acknowledged.
close_behind(Texts) ->
    Listener = quic_ct:listen(),
    Client = quic_ct:connect(Listener),
    Server = quic_ct:new_server(Listener),
    Open = fun(Text) ->
        {ok, Stream} = macula_quic:open_stream(Client),
        ok = macula_quic:setopt(Stream, active, true),
        ok = macula_quic:send(Stream, Text),
        ok = macula_quic:async_shutdown_stream(Stream, ?GRACEFUL, 0),
        %% By then, all of it is acknowledged.
        ?assertEqual({send_shutdown_complete, true}, quic_ct:next(Stream))
    end,
    lists:foreach(Open, Texts),
    ok = macula_quic:close(Client),
    receive
        {quic, closed, Server, _} -> {Listener, Server}
    after ?WAIT_MS -> error(not_closed)
    end.

%% Streams of a lost connection that a node keeps in its state must not stay half alive.
an_idle_sender_learns_that_its_connection_is_gone(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {Near, _Far} = quic_ct:streams(Client, Server),
    ok = macula_quic:close(Server),
    ?assertEqual({shutdown, 0}, quic_ct:next(Client)),
    Gone = {error, {closed_by_peer, 0}},
    mesh_wait:eventually(Gone, fun() -> macula_quic:async_send(Near, <<>>) end),
    ?assertEqual(Gone, macula_quic:send(Near, <<"late">>)).

%% Both halves see the loss in any order; the owner hears of it once, after the data.
losing_a_connection_under_load_ends_every_stream_once(_Config) ->
    [
        begin
            {Client, Server} = quic_ct:pair(),
            Pairs = [quic_ct:streams(Client, Server) || _ <- lists:seq(1, 10)],
            Streams = lists:append([[Near, Far] || {Near, Far} <- Pairs]),
            [ok = macula_quic:setopt(Stream, active, true) || Stream <- Streams],
            Chunk = binary:copy(<<7>>, 10_000),
            [ok = macula_quic:send(S, Chunk) || _ <- lists:seq(1, 20), S <- Streams],
            ok = macula_quic:async_shutdown_connection(Client, 0, N),
            [
                ?assertMatch({stream_closed, #{is_conn_shutdown := true}}, after_data(Stream))
             || Stream <- Streams
            ],
            [quic_ct:none(Stream) || Stream <- [hd(Streams), lists:last(Streams)]]
        end
     || N <- lists:seq(1, 10)
    ].

after_data(Stream) ->
    case quic_ct:next(Stream) of
        {Data, _} when is_binary(Data) -> after_data(Stream);
        Message -> Message
    end.

%% As above, where nobody reads at the moment; what has arrived is still there, and the end behind
%% it.
who_has_ended_a_stream_is_told_of_the_loss_of_its_connection_though_he_does_not_read(_Config) ->
    [
        begin
            {Client, Server} = quic_ct:pair(),
            {ok, Server} = macula_quic:async_accept_stream(Server, []),
            {ok, Near} = macula_quic:open_stream(Client),
            [First, Second] = [mesh_peer:frame(N, 8) || N <- [1, 2]],
            ok = macula_quic:send(Near, [First, Second]),
            {Far, _} = new_stream(),
            ?assertEqual(First, Read(Far)),
            %% The end stays behind what the peer does not read.
            ok = macula_quic:send(Far, binary:copy(<<7>>, 16 * ?MIB)),
            ok = macula_quic:async_shutdown_stream(Far, ?GRACEFUL, 0),
            ok = macula_quic:async_shutdown_connection(Client, 0, 7),
            ?assertEqual({send_shutdown_complete, false}, quic_ct:next(Far)),
            ?assertEqual(Second, Read(Far)),
            ok = macula_quic:setopt(Far, active, true),
            ?assertMatch(
                {stream_closed, #{is_conn_shutdown := true, status := {closed_by_peer, 7}}},
                quic_ct:next(Far)
            ),
            ok = macula_quic:close(Near)
        end
     || Read <- [fun received/1, fun read_once/1]
    ].

received(Stream) ->
    {ok, Data} = macula_quic:recv(Stream, ?WAIT_MS),
    Data.

read_once(Stream) ->
    ok = macula_quic:setopt(Stream, active, once),
    {Data, #{len := _}} = quic_ct:next(Stream),
    Data.

%% Forgotten handles must not eat the peer's credit.
a_stream_that_nobody_holds_is_closed(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Near = forget_the_other_end(Client, Server),
    ok = macula_quic:setopt(Near, active, true),
    true = erlang:garbage_collect(),
    ?assertEqual(
        [{peer_receive_aborted, 0}, {peer_send_shutdown, undefined}],
        lists:sort([quic_ct:next(Near), quic_ct:next(Near)])
    ).

forget_the_other_end(Client, Server) ->
    {Near, _Far} = quic_ct:streams(Client, Server),
    quic_ct:forget(),
    Near.

%% As above: a request that was not read to its end is over with its answer.
a_stream_that_nobody_holds_is_closed_once_its_owner_was_told_of_its_own_end(_Config) ->
    assert_closed_after(fun answer_new_stream/0).

assert_closed_after(Answer) ->
    {Client, Server} = quic_ct:pair(),
    Near = opened(Client, Server),
    ok = macula_quic:setopt(Near, active, true),
    _ = Answer(),
    ?assertEqual({peer_send_shutdown, undefined}, quic_ct:next(Near)),
    true = erlang:garbage_collect(),
    ?assertEqual({peer_receive_aborted, 0}, quic_ct:next(Near)).

answer_new_stream() ->
    {Stream, _} = new_stream(),
    ?assertEqual({ok, <<0>>}, macula_quic:recv(Stream, ?WAIT_MS)),
    ok = macula_quic:async_shutdown_stream(Stream, ?GRACEFUL, 0),
    ?assertEqual({send_shutdown_complete, true}, quic_ct:next(Stream)),
    Stream.

%% As above, for a process that is not the owner and was killed while it waited for more.
a_stream_whose_reader_has_died_is_held_for_nobody(_Config) ->
    assert_closed_after(fun end_with_its_reader/0).

end_with_its_reader() ->
    {Reader, _} = quic_ct:reader(answer_new_stream()),
    quic_ct:give_up(Reader).

%% A stream that has begun, and comes as `new_stream' on the other side.
opened(Opener, Acceptor) ->
    {ok, Acceptor} = macula_quic:async_accept_stream(Acceptor, []),
    {ok, Near} = macula_quic:open_stream(Opener),
    ok = macula_quic:send(Near, <<0>>),
    Near.

%% Old senders use them for what needs no answer. Ours does not, so the other client does.
streams_on_which_only_the_peer_sends_are_read_and_bounded(_Config) ->
    Listener = quic_ct:listen([{peer_unidi_stream_count, 2}]),
    {ok, Listener} = macula_quic:async_accept(Listener, []),
    Client = mesh_attacker:start(Listener, unis, ["--count", "3"]),
    Server =
        receive
            {quic, new_conn, Connection, _} -> Connection
        after ?WAIT_MS -> error(not_accepted)
        end,
    [{ok, Server} = macula_quic:async_accept_stream(Server, []) || _ <- [1, 2, 3]],
    Streams = [new_stream(), new_stream()],
    %% None of them is read yet, so no credit has come back.
    ?assertMatch(#{done := 2, connected := 1}, mesh_attacker:outcome(Client)),
    [
        begin
            ?assertEqual(#{conn => Server, flags => 1}, Properties),
            ?assertEqual({error, closed}, macula_quic:send(Stream, <<"answer">>)),
            ok = macula_quic:setopt(Stream, active, true),
            ?assertMatch({<<1, 1, 0, 0, 1:32, 0>>, _}, quic_ct:next(Stream)),
            ?assertEqual({peer_send_shutdown, undefined}, quic_ct:next(Stream)),
            ?assertMatch({stream_closed, #{status := ok}}, quic_ct:next(Stream))
        end
     || {Stream, Properties} <- Streams
    ],
    ok = mesh_attacker:call_off(Client).

%% A handler frees its state at stream_closed; one that never comes is a leak.
who_closes_a_stream_is_told_of_its_end_whatever_has_ended_before(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Finish = fun(Near, _Far) ->
        ok = macula_quic:async_shutdown_stream(Near, ?GRACEFUL, 0),
        ?assertEqual({send_shutdown_complete, true}, quic_ct:next(Near))
    end,
    Stop = fun(Near, Far) ->
        ok = macula_quic:async_shutdown_stream(Far, ?ABORT_RECEIVE, 55),
        ?assertEqual({peer_receive_aborted, 55}, quic_ct:next(Near))
    end,
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            ok = macula_quic:setopt(Near, active, true),
            EndSending(Near, Far),
            ok = Close(Near),
            ?assertMatch({stream_closed, #{status := ok}}, quic_ct:next(Near)),
            ok = Close(Near),
            quic_ct:none(Near)
        end
     || EndSending <- [Finish, Stop], Close <- closings()
    ].

%% Every way to read no more.
closings() ->
    Shutdown = fun(Flags) ->
        fun(Stream) -> macula_quic:async_shutdown_stream(Stream, Flags, 7) end
    end,
    [fun macula_quic:close/1 | [Shutdown(Flags) || Flags <- [?ABORT_RECEIVE, ?ABORT, ?IMMEDIATE]]].

%% What could not be told while the stream was passive is still of use at its end.
a_stopped_passive_stream_tells_its_end_to_who_closes_it(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Finish = fun(Stream) -> ok = macula_quic:async_shutdown_stream(Stream, ?GRACEFUL, 0) end,
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            [ok = macula_quic:setopt(Near, active, IsActive) || IsActive <- [true, false]],
            ok = macula_quic:async_shutdown_stream(Far, ?ABORT_RECEIVE, 55),
            IsStopped = fun() -> macula_quic:send(Near, <<"x">>) =:= {error, {stopped, 55}} end,
            mesh_wait:eventually(true, IsStopped),
            quic_ct:none(Near),
            First(Near),
            ?assertEqual({peer_receive_aborted, 55}, quic_ct:next(Near)),
            ok = macula_quic:close(Near),
            ?assertMatch({stream_closed, #{status := ok}}, quic_ct:next(Near))
        end
     || First <- [Finish, fun macula_quic:close/1]
    ].

%% Whichever of the two comes first: the acknowledgement of our end, or the peer's.
who_reads_to_the_end_after_its_own_is_told_of_both_once(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Finish = fun(Stream) -> ok = macula_quic:async_shutdown_stream(Stream, ?GRACEFUL, 0) end,
    Acknowledged = fun(Stream) ->
        ?assertEqual({send_shutdown_complete, true}, quic_ct:next(Stream))
    end,
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            [ok = macula_quic:setopt(Near, active, IsActive) || IsActive <- [true, false]],
            [Do() || Do <- First(fun() -> Finish(Far) end, fun() -> Finish(Near) end)],
            Acknowledged(Near),
            ?assertEqual({error, closed}, macula_quic:recv(Near, ?WAIT_MS)),
            ?assertMatch({stream_closed, #{status := ok}}, quic_ct:next(Near)),
            quic_ct:none(Near)
        end
     || First <- [fun(Theirs, Ours) -> [Theirs, Ours] end, fun(Theirs, Ours) -> [Ours, Theirs] end]
    ].

%% As above: our half has ended from the start.
who_closes_a_stream_on_which_only_the_peer_sends_is_told_of_its_end(_Config) ->
    Listener = quic_ct:listen([{peer_unidi_stream_count, 4}]),
    Client = mesh_attacker:start(Listener, unis, ["--count", "4"]),
    Server = quic_ct:new_server(Listener),
    [
        begin
            {ok, Server} = macula_quic:async_accept_stream(Server, []),
            {Stream, #{flags := 1}} = new_stream(),
            ok = Close(Stream),
            ?assertMatch({stream_closed, #{status := ok}}, quic_ct:next(Stream))
        end
     || Close <- closings()
    ],
    ok = mesh_attacker:call_off(Client).

%%% Flow control

%% A handler that does not keep up slows its peer down, and costs no memory.
an_unread_stream_holds_the_peer(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {Near, Far} = quic_ct:streams(Client, Server),
    Chunk = binary:copy(<<7>>, 65_536),
    Before = resident_bytes(),
    Sender = quic_ct:agent(),
    Sending = quic_ct:tell(Sender, fun() ->
        [ok = macula_quic:send(Near, Chunk) || _ <- lists:seq(1, 1_600)]
    end),
    mesh_wait:eventually(true, fun() ->
        is_full(Near) andalso stands_still(Client, Near)
    end),
    ?assertEqual({status, waiting}, process_info(Sender, status)),
    receive
        {Sending, _} -> error(nothing_held_the_sender)
    after 0 -> ok
    end,
    ?assert(resident_bytes() - Before < 30 * ?MIB),
    %% Everything is still there for who reads it at last.
    Size = 1_600 * 65_536,
    ?assertEqual(Size, count(Far, Size)),
    receive
        {Sending, Results} -> ?assertEqual(1_600, length(Results))
    after ?WAIT_MS -> error(still_held)
    end.

%% Nothing goes out any more. A machine that stands still is one look.
stands_still(Connection, Stream) ->
    Sent = macula_quic:getstat(Connection, [send_oct]),
    IsStill = fun(_Look) ->
        {error, timeout} = macula_quic:recv(Stream, 5),
        is_full(Stream) andalso macula_quic:getstat(Connection, [send_oct]) =:= Sent
    end,
    lists:all(IsStill, lists:seq(1, ?LOOKS)).

is_full(Stream) -> macula_quic:async_send(Stream, <<>>) =:= {error, send_queue_full}.

count(_Stream, 0) ->
    0;
count(Stream, Left) ->
    {ok, Data} = macula_quic:recv(Stream, ?WAIT_MS),
    byte_size(Data) + count(Stream, Left - byte_size(Data)).

resident_bytes() ->
    {ok, Statm} = file:read_file("/proc/self/statm"),
    [_, Pages | _] = binary:split(Statm, <<" ">>, [global]),
    binary_to_integer(Pages) * 4_096.

%%% Internal

races() -> lists:seq(1, ?RACES).

new_stream() ->
    receive
        {quic, new_stream, Stream, Properties} -> {Stream, Properties}
    after ?WAIT_MS -> error(no_stream)
    end.
