%%% Owners of the streams of `macula_quic': what their death ends, and handing over, also while data
%%% arrives. Both ends are ours, on loopback.
-module(quic_owner_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

%% The steps of a handover.
-define(NIF, macula_gateway_mesh_nif).
-define(WAIT_MS, 10_000).
%% A flag of async_shutdown_stream/3.
-define(GRACEFUL, 1).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [
        the_owners_death_closes_its_streams,
        a_stream_that_could_not_be_given_still_dies_with_its_owner,
        an_active_stream_goes_to_its_new_owner_with_its_messages,
        a_passive_stream_goes_to_its_new_owner,
        only_the_owner_gives_a_stream_away,
        a_failed_handover_loses_nothing,
        whose_death_in_the_middle_of_a_handover_closes_the_stream,
        who_is_to_own_a_stream_cannot_give_it_on_before,
        who_is_to_own_a_stream_reads_what_it_is_given_first,
        the_end_of_the_sending_half_during_a_handover_is_told,
        handing_over_a_thousand_times_keeps_every_byte,
        what_belongs_to_the_pool_is_not_given_away
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> ok.

%% A crashed handler's peers must not wait for answers, whoever else has seen its handles.
the_owners_death_closes_its_streams(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            Agent = quic_ct:agent(),
            ok = macula_quic:setopt(Near, active, true),
            ok = macula_quic:setopt(Far, active, Mode),
            ok = macula_quic:controlling_process(Far, Agent),
            quic_ct:give_up(Agent),
            ?assertEqual(
                [{peer_receive_aborted, 0}, {peer_send_shutdown, undefined}],
                lists:sort([quic_ct:next(Near), quic_ct:next(Near)])
            ),
            ?assertEqual({error, closed}, macula_quic:send(Far, <<"x">>))
        end
     || Mode <- [false, true]
    ],
    %% Also one that was never read from.
    Agent = quic_ct:agent(),
    {ok, Near} = macula_quic:open_stream(Client),
    ok = macula_quic:setopt(Near, active, true),
    ok = macula_quic:send(Near, <<0>>),
    {ok, Far} = quic_ct:in(Agent, fun() -> macula_quic:accept_stream(Server, ?WAIT_MS) end),
    quic_ct:give_up(Agent),
    ?assertEqual(
        [{peer_receive_aborted, 0}, {peer_send_shutdown, undefined}],
        lists:sort([quic_ct:next(Near), quic_ct:next(Near)])
    ),
    ok = macula_quic:close(Far).

%% A handover that has failed changes nothing, least of all who cleans up.
a_stream_that_could_not_be_given_still_dies_with_its_owner(_Config) ->
    {Client, Server} = quic_ct:pair(),
    {Near, Far} = quic_ct:streams(Client, Server),
    ok = macula_quic:setopt(Near, active, true),
    [Owner, Dead] = [quic_ct:agent(), quic_ct:agent()],
    quic_ct:give_up(Dead),
    ok = macula_quic:controlling_process(Far, Owner),
    Give = fun() -> macula_quic:controlling_process(Far, Dead) end,
    ?assertEqual({error, noproc}, quic_ct:in(Owner, Give)),
    quic_ct:give_up(Owner),
    ?assertEqual(
        [{peer_receive_aborted, 0}, {peer_send_shutdown, undefined}],
        lists:sort([quic_ct:next(Near), quic_ct:next(Near)])
    ),
    ok = macula_quic:close(Far).

%% What has come already goes along, in its order, before what comes.
an_active_stream_goes_to_its_new_owner_with_its_messages(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:setopt(Far, active, true),
    Send = fun(N) -> ok = macula_quic:send(Near, quic_ct:frame(<<N>>)) end,
    lists:foreach(Send, [1, 2, 3]),
    mesh_wait:eventually(3, fun() -> quic_ct:come(Far) end),
    Agent = quic_ct:agent(),
    ok = macula_quic:controlling_process(Far, Agent),
    lists:foreach(Send, [4, 5, 6]),
    Numbers = quic_ct:in(Agent, fun() -> [number(quic_ct:next(Far)) || _ <- lists:seq(1, 6)] end),
    ?assertEqual([1, 2, 3, 4, 5, 6], Numbers),
    quic_ct:none(Far),
    ok = macula_quic:close(Near),
    %% In no fixed order.
    ?assertEqual(
        [{peer_receive_aborted, 0}, {peer_send_shutdown, undefined}],
        quic_ct:in(Agent, fun() -> lists:sort([quic_ct:next(Far), quic_ct:next(Far)]) end)
    ).

number({<<_:8/binary, N>>, _}) -> N.

%% A passive stream stays passive; what it has received waits for the new owner.
a_passive_stream_goes_to_its_new_owner(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    ok = macula_quic:send(Near, <<"kept">>),
    Agent = quic_ct:agent(),
    ok = macula_quic:controlling_process(Far, Agent),
    Kept = quic_ct:in(Agent, fun() -> macula_quic:recv(Far, ?WAIT_MS) end),
    ?assertEqual({ok, <<"kept">>}, Kept).

%% As for connections.
only_the_owner_gives_a_stream_away(_Config) ->
    {_Near, Far} = quic_ct:raw_streams(),
    Agent = quic_ct:agent(),
    Test = self(),
    Give = fun(To) -> fun() -> macula_quic:controlling_process(Far, To) end end,
    [?assertEqual({error, not_owner}, quic_ct:in(Agent, Give(To))) || To <- [Test, Agent]],
    ?assertEqual(ok, macula_quic:controlling_process(Far, self())),
    ok = macula_quic:controlling_process(Far, Agent),
    ?assertEqual({error, not_owner}, macula_quic:controlling_process(Far, Agent)).

%% The worker that was to take over has died: its data still belongs to the acceptor.
a_failed_handover_loses_nothing(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:setopt(Far, active, true),
    ok = macula_quic:send(Near, quic_ct:frame(<<1>>)),
    mesh_wait:eventually(1, fun() -> quic_ct:come(Far) end),
    Dead = quic_ct:agent(),
    quic_ct:give_up(Dead),
    ?assertEqual({error, noproc}, macula_quic:controlling_process(Far, Dead)),
    ok = macula_quic:send(Near, quic_ct:frame(<<2>>)),
    ?assertEqual([1, 2], [number(quic_ct:next(Far)) || _ <- [1, 2]]).

%% A stream that nobody owns would deliver nothing, and never end.
whose_death_in_the_middle_of_a_handover_closes_the_stream(_Config) ->
    {Client, Server} = quic_ct:pair(),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            [Giver, Heir] = [quic_ct:agent(), quic_ct:agent()],
            [ok = macula_quic:setopt(Stream, active, true) || Stream <- [Near, Far]],
            ok = macula_quic:controlling_process(Far, Giver),
            ok = quic_ct:in(Giver, fun() -> ?NIF:stream_pause(Far, Heir) end),
            quic_ct:give_up(maps:get(Dying, #{giver => Giver, heir => Heir})),
            Dying =:= heir andalso
                (ok = quic_ct:in(Giver, fun() -> ?NIF:stream_give(Far, Heir) end)),
            ?assertEqual(
                [{peer_receive_aborted, 0}, {peer_send_shutdown, undefined}],
                lists:sort([quic_ct:next(Near), quic_ct:next(Near)])
            )
        end
     || Dying <- [giver, heir]
    ].

%% Or the giver's last step would undo what its heir has begun.
who_is_to_own_a_stream_cannot_give_it_on_before(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:setopt(Far, active, true),
    [Heir, Third] = [quic_ct:agent(), quic_ct:agent()],
    GiveOn = fun() -> macula_quic:controlling_process(Far, Third) end,
    ok = ?NIF:stream_pause(Far, Heir),
    ?assertEqual({error, not_owner}, quic_ct:in(Heir, GiveOn)),
    ok = ?NIF:stream_give(Far, Heir),
    ?assertEqual({error, not_owner}, ?NIF:stream_give(Far, self())),
    ?assertEqual(ok, quic_ct:in(Heir, GiveOn)),
    ok = macula_quic:send(Near, quic_ct:frame(<<1>>)),
    ?assertEqual(1, quic_ct:in(Third, fun() -> number(quic_ct:next(Far)) end)).

%% The giver's messages are from before what is still to be read.
who_is_to_own_a_stream_reads_what_it_is_given_first(_Config) ->
    {Near, Far} = quic_ct:frame_streams(),
    ok = macula_quic:setopt(Far, active, once),
    [ok = macula_quic:send(Near, quic_ct:frame(<<N>>)) || N <- [1, 2]],
    mesh_wait:eventually(1, fun() -> quic_ct:come(Far) end),
    Heir = quic_ct:agent(),
    ok = ?NIF:stream_pause(Far, Heir),
    Read = quic_ct:tell(Heir, fun() -> [macula_quic:recv(Far, ?WAIT_MS) || _ <- [1, 2]] end),
    Waits = {current_function, {macula_quic, await, 4}},
    mesh_wait:eventually(Waits, fun() -> process_info(Heir, current_function) end),
    {Data, Detail} = quic_ct:next(Far),
    Heir ! {quic, Data, Far, Detail},
    ok = ?NIF:stream_give(Far, Heir),
    receive
        {Read, Results} -> ?assertEqual([{ok, quic_ct:frame(<<N>>)} || N <- [1, 2]], Results)
    after ?WAIT_MS -> error({never_read, process_info(Heir, messages)})
    end.

%% Whoever waits for this message would wait for good.
the_end_of_the_sending_half_during_a_handover_is_told(_Config) ->
    {Client, Server} = quic_ct:pair([{peer_bidi_stream_count, 1_000}], []),
    [
        begin
            {Near, Far} = quic_ct:streams(Client, Server),
            ok = macula_quic:setopt(Near, active, true),
            ok = macula_quic:async_shutdown_stream(Near, ?GRACEFUL, 0),
            Agent = quic_ct:agent(),
            ok = macula_quic:controlling_process(Near, Agent),
            Told = quic_ct:in(Agent, fun() -> quic_ct:next(Near) end),
            ?assertEqual({send_shutdown_complete, true}, Told),
            ok = macula_quic:close(Far)
        end
     || _ <- lists:seq(1, 200)
    ].

%% Acceptors hand streams to workers while peers are sending at full speed.
handing_over_a_thousand_times_keeps_every_byte(_Config) ->
    {Near, Far} = quic_ct:raw_streams(),
    Chunk = crypto:strong_rand_bytes(100_000),
    Chunks = 1_200,
    Sent = lists:foldl(
        fun(N, Hash) -> crypto:hash_update(Hash, [<<N:32>>, Chunk]) end,
        crypto:hash_init(sha256),
        lists:seq(1, Chunks)
    ),
    spawn_link(fun() ->
        [ok = macula_quic:send(Near, [<<N:32>>, Chunk]) || N <- lists:seq(1, Chunks)],
        ok = macula_quic:async_shutdown_stream(Near, ?GRACEFUL, 0)
    end),
    ok = macula_quic:setopt(Far, active, true),
    hand_over({Far, 1_000, 1, crypto:hash_init(sha256)}, self()),
    receive
        {carried, Offset, Hash} ->
            ?assertEqual(1 + Chunks * 100_004, Offset),
            ?assertEqual(crypto:hash_final(Sent), crypto:hash_final(Hash))
    after 50_000 -> error(never_carried)
    end.

%% Gives the stream to a new process.
hand_over({Stream, Left, Offset, Hash}, Test) ->
    Next = spawn_link(fun() ->
        receive
            {carry, State} -> carry_on(State, Test)
        end
    end),
    ok = macula_quic:controlling_process(Stream, Next),
    Next ! {carry, {Stream, Left - 1, Offset, Hash}}.

%% Each process takes one delivery, of at most 93 kB, and hands the stream on; the last one reads
%% to the end. Its offset says that nothing is missing, repeated or out of order.
carry_on({Stream, 0, Offset, Hash}, Test) ->
    case quic_ct:next(Stream) of
        {peer_send_shutdown, undefined} ->
            Test ! {carried, Offset, Hash};
        Delivery ->
            {Next, More} = add(Delivery, Offset, Hash),
            carry_on({Stream, 0, Next, More}, Test)
    end;
carry_on({Stream, Left, Offset, Hash}, Test) ->
    {Next, More} = add(quic_ct:next(Stream), Offset, Hash),
    hand_over({Stream, Left, Next, More}, Test).

add({Data, #{absolute_offset := Offset, len := Length}}, Offset, Hash) ->
    Length = byte_size(Data),
    {Offset + Length, crypto:hash_update(Hash, Data)}.

%% A pooled connection is everybody's: whoever took it, or its streams, would take it from all.
what_belongs_to_the_pool_is_not_given_away(_Config) ->
    {ok, Pool} = macula_gateway_mesh:start_link(#{}),
    {ok, Address} = macula_quic:sockname(quic_ct:listen()),
    {ok, Stream} = macula_gateway_mesh:get_or_create_connection(Pool, <<1:256>>, Address),
    {ok, #{connection := Connection}} = macula_gateway_mesh:get_connection_info(Pool, <<1:256>>),
    Agent = quic_ct:agent(),
    [
        begin
            ?assertEqual({error, closed}, macula_quic:controlling_process(Stream, To)),
            ?assertEqual({error, not_owner}, macula_quic:controlling_process(Connection, To))
        end
     || To <- [Agent, self()]
    ],
    ?assertEqual({error, not_accepting}, macula_quic:accept_stream(Connection, ?WAIT_MS)),
    ?assertEqual({error, not_accepting}, macula_quic:async_accept_stream(Connection, [])),
    ok = macula_gateway_mesh:stop(Pool).
