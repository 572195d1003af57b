%%% Reading the streams of `macula_quic': recv/2 and who waits in it, the modes of a stream that
%%% decide whether its data comes as messages, and a change from one to the other. Nothing is lost,
%%% doubled or read for nobody. Both ends are ours, on loopback.
-module(quic_read_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(WAIT_MS, 10_000).
%% FIN, as a flag of `async_shutdown_stream/3'.
-define(GRACEFUL, 1).
-define(RACES, 1_000).
%% Processes that may wait for data of one stream.
-define(READERS, 1_024).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [
        what_nobody_waits_for_any_more_is_not_read,
        a_timed_out_recv_loses_no_data,
        a_reader_that_has_died_takes_no_data,
        a_read_does_not_look_through_what_is_in_the_mailbox,
        readers_of_one_stream_are_served_in_turn,
        readers_that_give_up_now_and_then_lose_nothing,
        the_end_of_a_stream_is_told_to_all_its_readers,
        readers_are_bounded_and_the_dead_make_room,
        recv_takes_the_messages_of_an_active_stream,
        recv_takes_what_came_as_messages_before_it_reads,
        recv_with_timeout_0_returns_what_has_come,
        recv_tells_how_the_connection_ended,
        recv_goes_on_to_read_when_a_stream_turns_passive,
        a_stream_is_passive_until_told_otherwise,
        active_once_gives_one_message,
        active_n_gives_n_messages_and_then_passive,
        a_mode_that_is_none_is_badarg
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> ok.

%%% recv/2 and its readers

%% Put together here, it would be memory that no window bounds.
what_nobody_waits_for_any_more_is_not_read(_Config) ->
    {Client, Server} = quic_ct:pair([{receive_window_bytes, 65_536}], []),
    Frame = quic_ct:frame(binary:copy(<<1>>, 1_000_000)),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server, macula),
            _ = GiveUp(Far),
            ok = macula_quic:send(Near, Frame),
            quic_ct:none(Far),
            ?assert(stat(send_pend, Client) > 500_000),
            ?assertEqual({ok, Frame}, macula_quic:recv(Far, ?WAIT_MS))
        end
     || GiveUp <- [
            fun(Far) -> {error, timeout} = macula_quic:recv(Far, 10) end,
            fun(Far) -> [ok = macula_quic:setopt(Far, active, Mode) || Mode <- [true, false]] end
        ]
    ].

stat(Key, Connection) ->
    {ok, [{Key, Value}]} = macula_quic:getstat(Connection, [Key]),
    Value.

%% Servers poll with short timeouts: data that comes just too late is for the next call.
a_timed_out_recv_loses_no_data(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    ?assertEqual({error, timeout}, macula_quic:recv(Far, 0)),
    Sender = quic_ct:agent(),
    _ = quic_ct:tell(Sender, fun() -> [send_and_wait(Near, N) || N <- races()] end),
    Bytes = poll_recv(Far, Sender, ?RACES * 4),
    ?assertEqual(<<<<N:32>> || N <- races()>>, Bytes),
    ?assertEqual({error, timeout}, macula_quic:recv(Far, 0)).

%% One at a time, so that each arrives at a reader that has just begun or just given up.
send_and_wait(Stream, N) ->
    ok = macula_quic:send(Stream, <<N:32>>),
    receive
        got -> ok
    end.

poll_recv(_Stream, _Sender, 0) ->
    <<>>;
poll_recv(Stream, Sender, Left) ->
    case macula_quic:recv(Stream, rand:uniform(2) - 1) of
        {ok, Data} ->
            [Sender ! got || Left rem 4 =:= 0],
            Rest = poll_recv(Stream, Sender, Left - byte_size(Data)),
            <<Data/binary, Rest/binary>>;
        {error, timeout} ->
            poll_recv(Stream, Sender, Left)
    end.

%% A helper that is killed while it waits must not leave its owner without data.
a_reader_that_has_died_takes_no_data(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    {Helper, _} = quic_ct:reader(Far),
    quic_ct:give_up(Helper),
    ok = macula_quic:send(Near, quic_ct:frame(<<1>>)),
    ?assertEqual({ok, quic_ct:frame(<<1>>)}, macula_quic:recv(Far, ?WAIT_MS)),
    %% Nor when it dies with somebody behind it.
    {Second, _} = quic_ct:reader(Far),
    {_, Reading} = quic_ct:reader(Far),
    quic_ct:give_up(Second),
    ok = macula_quic:send(Near, quic_ct:frame(<<2>>)),
    ?assertEqual({ok, quic_ct:frame(<<2>>)}, outcome(Reading)).

outcome(Reading) ->
    receive
        {Reading, Result} -> Result
    after ?WAIT_MS -> error(nothing_was_read)
    end.

%% A server with much to do must not pay for all of it with each thing it reads. To look at one
%% message is a reduction.
a_read_does_not_look_through_what_is_in_the_mailbox(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {Near, Far} = quic_ct:streams(Client, Server),
    Listener = quic_ct:listen(),
    Waiting = 200_000,
    Many = lists:seq(1, Waiting),
    Calls = [
        fun() -> {error, timeout} = macula_quic:recv(Far, 0) end,
        fun() -> {error, timeout} = macula_quic:accept(Listener, 0) end,
        fun() -> {error, timeout} = macula_quic:accept_stream(Server, 0) end
    ],
    [self() ! N || N <- Many],
    ok = macula_quic:send(Near, <<"data">>),
    {ok, <<"data">>} = macula_quic:recv(Far, ?WAIT_MS),
    Costs = [reductions(Call) || Call <- Calls],
    [?assert(Cost < Waiting div 10, Costs) || Cost <- Costs],
    Many = [receive N when is_integer(N) -> N end || _ <- Many].

reductions(Work) ->
    {reductions, Before} = process_info(self(), reductions),
    Work(),
    {reductions, After} = process_info(self(), reductions),
    After - Before.

%% Whoever holds a stream may read it.
readers_of_one_stream_are_served_in_turn(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    Readers = [quic_ct:reader(Far) || _ <- [1, 2, 3]],
    ok = macula_quic:send(Near, [quic_ct:frame(<<N>>) || N <- [1, 2, 3]]),
    Read = [outcome(Reading) || {_, Reading} <- Readers],
    ?assertEqual([{ok, quic_ct:frame(<<N>>)} || N <- [1, 2, 3]], Read).

%% Who takes his request back must not take another's.
readers_that_give_up_now_and_then_lose_nothing(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    Test = self(),
    [spawn_link(fun() -> read_forever(Far, Test) end) || _ <- [1, 2, 3]],
    [
        begin
            ok = macula_quic:send(Near, quic_ct:frame(<<N:32>>)),
            ?assertEqual(quic_ct:frame(<<N:32>>), outcome(read))
        end
     || N <- races()
    ].

read_forever(Stream, Test) ->
    case macula_quic:recv(Stream, rand:uniform(2) - 1) of
        {ok, Data} ->
            Test ! {read, Data},
            read_forever(Stream, Test);
        {error, timeout} ->
            read_forever(Stream, Test);
        {error, closed} ->
            ok
    end.

%% Who is not told would wait for good.
the_end_of_a_stream_is_told_to_all_its_readers(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            Readers = [quic_ct:reader(Far) || _ <- [1, 2]],
            ok = macula_quic:close(maps:get(Closing, #{near => Near, far => Far})),
            [?assertEqual({error, closed}, outcome(Reading)) || {_, Reading} <- Readers]
        end
     || Closing <- [near, far]
    ].

%% What waits is bounded, by those who live.
readers_are_bounded_and_the_dead_make_room(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    Readers = [quic_ct:reader(Far) || _ <- lists:seq(1, ?READERS)],
    ?assertEqual({error, too_many_waiters}, macula_quic:recv(Far, ?WAIT_MS)),
    [quic_ct:give_up(Agent) || {Agent, _} <- Readers],
    ?assertEqual({error, timeout}, macula_quic:recv(Far, 0)),
    ok = macula_quic:send(Near, quic_ct:frame(<<1>>)),
    ?assertEqual({ok, quic_ct:frame(<<1>>)}, macula_quic:recv(Far, ?WAIT_MS)).

%% v0.20.5 nodes make a stream active and still call recv/2 for an answer.
recv_takes_the_messages_of_an_active_stream(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    ok = macula_quic:setopt(Far, active, true),
    ?assertEqual({error, timeout}, macula_quic:recv(Far, 10)),
    ok = macula_quic:send(Near, <<"one">>),
    ?assertEqual({ok, <<"one">>}, macula_quic:recv(Far, ?WAIT_MS)),
    ok = macula_quic:close(Near),
    ?assertEqual({error, closed}, macula_quic:recv(Far, ?WAIT_MS)).

%% Frames in another order than they were sent are others' answers.
recv_takes_what_came_as_messages_before_it_reads(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server, macula),
            ok = macula_quic:setopt(Far, active, Mode),
            ok = macula_quic:send(Near, [quic_ct:frame(<<N>>) || N <- [1, 2, 3, 4]]),
            mesh_wait:eventually(true, fun() -> quic_ct:come(Far) >= Come end),
            Mode =:= true andalso (ok = macula_quic:setopt(Far, active, false)),
            Frames = [macula_quic:recv(Far, ?WAIT_MS) || _ <- [1, 2, 3, 4]],
            ?assertEqual([{ok, quic_ct:frame(<<N>>)} || N <- [1, 2, 3, 4]], Frames)
        end
     || {Mode, Come} <- [{2, 3}, {once, 1}, {true, 2}]
    ].

%% As `gen_tcp' does: who polls a stream must not need luck.
recv_with_timeout_0_returns_what_has_come(_Config) ->
    {Client, Server} = quic_ct:pair([{peer_bidi_stream_count, 1_000}], []),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            ok = macula_quic:setopt(Near, active, true),
            ?assertEqual({error, timeout}, macula_quic:recv(Far, 0)),
            ok = macula_quic:send(Near, <<N:32>>),
            ok = macula_quic:async_shutdown_stream(Near, ?GRACEFUL, 0),
            %% All of it is there.
            ?assertEqual({send_shutdown_complete, true}, quic_ct:next(Near)),
            ?assertEqual({ok, <<N:32>>}, macula_quic:recv(Far, 0)),
            ?assertEqual({error, closed}, macula_quic:recv(Far, 0))
        end
     || N <- lists:seq(1, 200)
    ],
    %% Nothing has: each of many who ask at once is told so.
    {_, Silent} = quic_ct:streams(Client, Server),
    Poll = fun() -> [macula_quic:recv(Silent, 0) || _ <- lists:seq(1, 20_000)] end,
    Polls = [quic_ct:tell(quic_ct:agent(), Poll) || _ <- [1, 2]],
    [
        receive
            {Ref, Told} -> ?assertEqual([{error, timeout}], lists:usort(Told))
        end
     || Ref <- Polls
    ],
    %% Behind those who wait.
    {Near, Far} = quic_ct:streams(Client, Server),
    Reader = quic_ct:agent(),
    First = quic_ct:tell(Reader, fun() -> macula_quic:recv(Far, ?WAIT_MS) end),
    Waits = {current_function, {macula_quic, await, 4}},
    mesh_wait:eventually(true, fun() -> process_info(Reader, current_function) =:= Waits end),
    ?assertEqual({error, timeout}, macula_quic:recv(Far, 0)),
    ok = macula_quic:send(Near, <<"first">>),
    receive
        {First, Result} -> ?assertEqual({ok, <<"first">>}, Result)
    after ?WAIT_MS -> error(never_read)
    end.

%% A body that was cut off must not look as if it was whole.
recv_tells_how_the_connection_ended(_Config) ->
    [
        begin
            {Client, Server} = quic_ct:pair(),
            {Near, Far} = quic_ct:streams(Client, Server),
            ok = macula_quic:setopt(Far, active, Mode),
            ok = macula_quic:send(Near, <<"half">>),
            ?assertEqual({ok, <<"half">>}, macula_quic:recv(Far, ?WAIT_MS)),
            ok = macula_quic:async_shutdown_connection(Client, 0, 7),
            Lost = {error, {closed_by_peer, 7}},
            ?assertEqual(Lost, macula_quic:recv(Far, ?WAIT_MS)),
            ?assertEqual(Lost, macula_quic:recv(Far, ?WAIT_MS))
        end
     || Mode <- [false, true]
    ].

%% Nobody waits for messages that cannot come any more.
recv_goes_on_to_read_when_a_stream_turns_passive(_Config) ->
    {Client, Server} = quic_ct:pair(),
    Waits = {current_function, {macula_quic, recv_message, 4}},
    Receive = fun(Far) ->
        Reader = quic_ct:agent(),
        Tag = quic_ct:tell(Reader, fun() -> macula_quic:recv(Far, ?WAIT_MS) end),
        mesh_wait:eventually(true, fun() -> process_info(Reader, current_function) =:= Waits end),
        {Reader, Tag}
    end,
    Received = fun({_Reader, Tag}) ->
        receive
            {Tag, Result} -> Result
        after ?WAIT_MS -> error(never_received)
        end
    end,
    %% Somebody else, or the owner, who has waited for messages.
    {Near, Far} = quic_ct:streams(Client, Server),
    ok = macula_quic:setopt(Far, active, true),
    {Owner, _} = First = Receive(Far),
    ok = macula_quic:controlling_process(Far, Owner),
    ok = macula_quic:setopt(Far, active, false),
    ok = macula_quic:send(Near, <<"one">>),
    ?assertEqual({ok, <<"one">>}, Received(First)),
    %% What the owner has asked for is used up.
    {Near2, Far2} = quic_ct:streams(Client, Server),
    ok = macula_quic:setopt(Far2, active, once),
    Second = Receive(Far2),
    ok = macula_quic:send(Near2, <<"one">>),
    ?assertMatch({<<"one">>, _}, quic_ct:next(Far2)),
    ok = macula_quic:send(Near2, <<"two">>),
    ?assertEqual({ok, <<"two">>}, Received(Second)),
    %% The end comes while it is active.
    {Near3, Far3} = quic_ct:streams(Client, Server),
    ok = macula_quic:setopt(Far3, active, true),
    Third = Receive(Far3),
    ok = macula_quic:async_shutdown_stream(Near3, ?GRACEFUL, 0),
    ?assertEqual({error, closed}, Received(Third)).

%%% Modes

%% Who has not asked for messages gets none, and nothing is lost meanwhile.
a_stream_is_passive_until_told_otherwise(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    ok = macula_quic:send(Near, <<"kept">>),
    quic_ct:none(Far),
    ok = macula_quic:setopt(Far, active, true),
    ?assertMatch({<<"kept">>, _}, quic_ct:next(Far)),
    ok = macula_quic:setopt(Far, active, false),
    ok = macula_quic:send(Near, <<"kept again">>),
    quic_ct:none(Far),
    ?assertEqual({ok, <<"kept again">>}, macula_quic:recv(Far, ?WAIT_MS)).

%% One message at a time is back-pressure for a slow handler.
active_once_gives_one_message(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:send(Near, [quic_ct:frame(<<N>>) || N <- [1, 2, 3]]),
    [
        begin
            ok = macula_quic:setopt(Far, active, once),
            ?assertMatch({<<_:8/binary, N>>, _}, quic_ct:next(Far)),
            quic_ct:none(Far)
        end
     || N <- [1, 2]
    ],
    ?assertEqual({ok, quic_ct:frame(<<3>>)}, macula_quic:recv(Far, ?WAIT_MS)).

%% As gen_tcp's {active, N}: the owner is told when its budget is used up.
active_n_gives_n_messages_and_then_passive(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:send(Near, [quic_ct:frame(<<N>>) || N <- [1, 2, 3, 4]]),
    ok = macula_quic:setopt(Far, active, 3),
    [?assertMatch({<<_:8/binary, N>>, _}, quic_ct:next(Far)) || N <- [1, 2, 3]],
    ?assertEqual({passive, undefined}, quic_ct:next(Far)),
    quic_ct:none(Far),
    ok = macula_quic:setopt(Far, active, 1),
    ?assertMatch({<<_:8/binary, 4>>, _}, quic_ct:next(Far)),
    ?assertEqual({passive, undefined}, quic_ct:next(Far)).

%% A mistake in a mode must not leave a stream that never delivers.
a_mode_that_is_none_is_badarg(_Config) ->
    {Near, _Far} = quic_ct:raw_streams(),
    Modes = [0, -1, 65_536, 65_537, yes, 1.0, "true"],
    [?assertError(badarg, macula_quic:setopt(Near, active, Mode)) || Mode <- Modes],
    [?assertError(badarg, macula_quic:setopt(Near, packet, Packet)) || Packet <- [0, line, "raw"]],
    ?assertError(function_clause, macula_quic:setopt(Near, linger, true)),
    ?assertEqual(ok, macula_quic:setopt(Near, active, 65_535)).

%%% Internal

races() -> lists:seq(1, ?RACES).
