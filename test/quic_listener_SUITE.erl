%%% Listeners of `macula_quic': where they listen, how connections are accepted, whom they turn
%%% away, their certificates, their end. Both ends are ours, on loopback.
-module(quic_listener_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(WAIT_MS, 10_000).
-define(RACES, 1_000).
%% Ports of which one is free in both families.
-define(TRIES, 10).
%% RFC 9000, section 20.1.
-define(STREAM_LIMIT_ERROR, 16#4).
-define(LOOPBACK, {127, 0, 0, 1}).
-define(LOOPBACK6, {0, 0, 0, 0, 0, 0, 0, 1}).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [
        listens_on_a_port_of_both_families,
        listens_on_one_address,
        listens_on_many_addresses,
        the_socket_has_the_buffers_that_were_asked_for,
        a_place_that_is_none_is_told_back,
        a_port_that_is_taken_is_told,
        a_port_that_is_taken_for_one_family_is_told,
        an_accepted_connection_was_announced_with_its_facts,
        a_connection_is_announced_before_its_end,
        each_async_accept_gives_one_connection,
        accepting_waits_no_longer_than_told,
        a_timed_out_accept_loses_no_connection,
        every_acceptor_gets_one_connection,
        an_acceptor_that_has_died_takes_no_connection_along,
        an_acceptor_that_dies_as_it_asks_takes_no_connection_along,
        a_closed_listener_ends_those_who_wait,
        a_closed_listener_says_so_to_every_call,
        too_many_who_wait_to_accept_are_told,
        acceptors_that_have_died_take_no_place,
        accepted_connections_outlive_their_listener,
        connections_that_nobody_accepted_end_with_the_listener,
        a_client_that_breaks_the_protocol_is_told_by_its_code,
        a_listener_whose_socket_loses_its_port_gets_it_back,
        a_listener_dies_with_its_owner,
        a_listener_goes_to_its_new_owner,
        a_listener_that_nobody_holds_is_closed,
        a_full_backlog_refuses,
        too_many_connections_are_refused_and_places_come_back,
        too_many_connections_of_one_address_are_refused,
        too_many_handshakes_are_refused,
        too_many_handshakes_of_one_address_are_refused,
        handshakes_under_way_take_no_place_of_the_backlog,
        a_client_that_comes_by_while_the_backlog_runs_full_is_closed,
        a_handshake_that_never_ends_is_given_up,
        retry_lets_honest_clients_in,
        new_certificates_are_for_new_connections,
        certificates_that_cannot_be_read_change_nothing
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> ok.

%%% Places

%% A node names its port alone, and peers of either family reach it.
listens_on_a_port_of_both_families(_Config) ->
    {ok, Listener} = macula_quic:listen(0, quic_ct:server_options()),
    {ok, {{0, 0, 0, 0, 0, 0, 0, 0}, Port}} = macula_quic:sockname(Listener),
    ?assert(Port > 0),
    [
        begin
            {ok, Client} = macula_quic:connect(Address, Port, [], ?WAIT_MS),
            Server = quic_ct:new_server(Listener),
            {ok, {_, ClientPort}} = macula_quic:sockname(Client),
            ?assertEqual({ok, {Address, ClientPort}}, macula_quic:peername(Server)),
            ?assertEqual({ok, {Address, Port}}, macula_quic:peername(Client))
        end
     || Address <- [?LOOPBACK, ?LOOPBACK6]
    ].

%% What is not meant for the outside must not be reachable from there.
listens_on_one_address(_Config) ->
    {Listener, Port} = listen_at_one(?TRIES),
    %% A port that was chosen can be asked for again.
    ok = macula_quic:close(Listener),
    Again = fun() -> macula_quic:listen({?LOOPBACK6, Port}, quic_ct:server_options()) end,
    mesh_wait:eventually(true, fun() -> is_free(Again()) end).

%% On a port of one family, which may be somebody else's in the other.
listen_at_one(Tries) ->
    {ok, Listener} = macula_quic:listen({?LOOPBACK6, 0}, quic_ct:server_options()),
    {ok, {?LOOPBACK6, Port}} = macula_quic:sockname(Listener),
    ?assertMatch({ok, _}, macula_quic:connect("::1", Port, [], ?WAIT_MS)),
    case macula_quic:connect(?LOOPBACK, Port, [], ?WAIT_MS) of
        {error, refused} -> {Listener, Port};
        _ when Tries > 1 -> listen_at_one(Tries - 1)
    end.

is_free({ok, _Listener}) -> true;
is_free({error, {socket_error, eaddrinuse}}) -> false.

%% Machines with several networks.
listens_on_many_addresses(_Config) ->
    {Listener, [{_, Port} | _] = Places} = listen_at_each([?LOOPBACK, ?LOOPBACK6, {127, 0, 0, 2}]),
    ?assertEqual({ok, {?LOOPBACK, Port}}, macula_quic:sockname(Listener)),
    [
        begin
            {ok, _} = macula_quic:connect(Address, Port, [], ?WAIT_MS),
            Server = quic_ct:new_server(Listener),
            ?assertEqual({ok, {Address, Port}}, macula_quic:sockname(Server))
        end
     || {Address, _} <- Places
    ].

%% At one port, which may be somebody's again before we listen there.
listen_at_each(Addresses) ->
    Port = mesh_ct:closed_port(?LOOPBACK),
    Places = [{Address, Port} || Address <- Addresses],
    case macula_quic:listen(Places, quic_ct:server_options()) of
        {ok, Listener} -> {Listener, Places};
        {error, {socket_error, eaddrinuse}} -> listen_at_each(Addresses)
    end.

%% Small ones lose packets in bursts. The kernel tells of twice what it was asked for.
the_socket_has_the_buffers_that_were_asked_for(_Config) ->
    case os:find_executable("ss") of
        false -> {skip, "no ss here, which would tell"};
        _ -> [?assertEqual(2 * Size, receive_buffer(Size)) || Size <- [65_536, 131_072]]
    end.

receive_buffer(Size) ->
    {ok, {_, Port}} = macula_quic:sockname(quic_ct:listen([{udp_buffer_bytes, Size}])),
    Told = os:cmd("ss -uanm sport = :" ++ integer_to_list(Port)),
    {match, [Bytes]} = re:run(Told, "rb(\\d+)", [{capture, [1], list}]),
    list_to_integer(Bytes).

%% A configuration mistake, told as one.
a_place_that_is_none_is_told_back(_Config) ->
    [
        ?assertEqual(
            {error, {bad_address, Told}}, macula_quic:listen(Place, quic_ct:server_options())
        )
     || {Place, Told} <- [
            {-1, -1},
            {65_536, 65_536},
            {[], []},
            {any, any},
            {{"localhost", 1}, [{"localhost", 1}]},
            {{?LOOPBACK, 65_536}, [{?LOOPBACK, 65_536}]},
            {[{?LOOPBACK, 0}, {300, 1}], [{?LOOPBACK, 0}, {300, 1}]}
        ]
    ].

%% Two nodes on one machine.
a_port_that_is_taken_is_told(_Config) ->
    Listener = quic_ct:listen(),
    {ok, Place} = macula_quic:sockname(Listener),
    ?assertEqual(
        {error, {socket_error, eaddrinuse}}, macula_quic:listen(Place, quic_ct:server_options())
    ),
    ?assertEqual(
        {error, {socket_error, eaddrnotavail}},
        macula_quic:listen({{192, 0, 2, 1}, 0}, quic_ct:server_options())
    ).

%%% Accepting

%% Half of a listener would leave the clients of one family outside, and nobody would know.
a_port_that_is_taken_for_one_family_is_told(Config) ->
    {ok, Socket} = gen_udp:open(0, [inet6, {ipv6_v6only, true}]),
    {ok, Port} = inet:port(Socket),
    ?assertEqual(
        {error, {socket_error, eaddrinuse}}, macula_quic:listen(Port, quic_ct:server_options())
    ),
    ok = gen_udp:close(Socket),
    case macula_quic:listen(Port, quic_ct:server_options()) of
        {ok, Listener} -> ok = macula_quic:close(Listener);
        %% It was somebody's in the other family.
        {error, {socket_error, eaddrinuse}} -> a_port_that_is_taken_for_one_family_is_told(Config)
    end.

%% A handler decides by these facts what it does with the connection.
an_accepted_connection_was_announced_with_its_facts(_Config) ->
    Listener = quic_ct:listen(),
    {ok, Door} = macula_quic:sockname(Listener),
    {ok, Listener} = macula_quic:async_accept(Listener, []),
    Client = quic_ct:connect(Listener, [{server_name_indication, "node.example"}]),
    {ok, {_, ClientPort}} = macula_quic:sockname(Client),
    {Server, Facts} = new_conn(),
    ?assertEqual(
        #{
            remote_addr => {?LOOPBACK, ClientPort},
            local_addr => Door,
            alpn => <<"macula">>,
            server_name => <<"node.example">>,
            identity => undefined
        },
        Facts
    ),
    ?assertEqual({connected, Facts}, quic_ct:next(Server)),
    quic_ct:none(Server).

%% A handler that hears of the end first would keep a dead connection for good.
a_connection_is_announced_before_its_end(_Config) ->
    Listener = quic_ct:listen(),
    Clients = [quic_ct:connect(Listener) || _ <- lists:seq(1, 100)],
    mesh_wait:eventually(100, fun() -> figure(waiting, Listener) end),
    [ok = macula_quic:close(Client) || Client <- Clients],
    [{ok, Listener} = macula_quic:async_accept(Listener, []) || _ <- Clients],
    [
        receive
            {quic, What, Server, _} ->
                ?assertEqual(new_conn, What),
                ?assertMatch({connected, _}, quic_ct:next(Server)),
                ?assertEqual({shutdown, 0}, quic_ct:next(Server)),
                ?assertMatch({closed, _}, quic_ct:next(Server))
        after ?WAIT_MS -> error(not_told)
        end
     || _ <- Clients
    ].

%% A server that is busy asks for no more.
each_async_accept_gives_one_connection(_Config) ->
    Listener = quic_ct:listen(),
    Clients = [quic_ct:connect(Listener) || _ <- [1, 2, 3]],
    mesh_wait:eventually(3, fun() -> figure(waiting, Listener) end),
    none_new(),
    [{ok, Listener} = macula_quic:async_accept(Listener, []) || _ <- [1, 2]],
    Two = [new_conn(), new_conn()],
    ?assertMatch(#{waiting := 1, connections := 3}, macula_quic:listener_stats(Listener)),
    {ok, Listener} = macula_quic:async_accept(Listener, []),
    Servers = [Server || {Server, _} <- [new_conn() | Two]],
    ?assertEqual(lists:sort(ports(sockname, Clients)), lists:sort(ports(peername, Servers))),
    %% Had one been given that nobody asked for, a request would be left, and this one given to it.
    _ = quic_ct:connect(Listener),
    mesh_wait:eventually(1, fun() -> figure(waiting, Listener) end),
    none_new().

ports(End, Connections) ->
    [
        begin
            {ok, {_, Port}} = macula_quic:End(Connection),
            Port
        end
     || Connection <- Connections
    ].

%% Polling servers count on it.
accepting_waits_no_longer_than_told(_Config) ->
    Listener = quic_ct:listen(),
    ?assertEqual({error, timeout}, macula_quic:accept(Listener, 0)),
    {Us, Result} = timer:tc(fun() -> macula_quic:accept(Listener, 100) end),
    ?assertEqual({error, timeout}, Result),
    ?assert(Us >= 100_000).

%% A client whose connection fell between two calls would wait for its answer for good.
a_timed_out_accept_loses_no_connection(_Config) ->
    Listener = quic_ct:listen(),
    Dialler = quic_ct:agent(),
    Dialling = quic_ct:tell(Dialler, fun() ->
        [ok = macula_quic:close(quic_ct:connect(Listener)) || _ <- lists:seq(1, ?RACES)]
    end),
    Servers = [poll_accept(Listener) || _ <- lists:seq(1, ?RACES)],
    ?assertEqual(?RACES, length(lists:usort(Servers))),
    receive
        {Dialling, Done} -> ?assertEqual(?RACES, length(Done))
    after ?WAIT_MS -> error(not_dialled)
    end,
    ?assertEqual({error, timeout}, macula_quic:accept(Listener, 0)).

poll_accept(Listener) ->
    case macula_quic:accept(Listener, rand:uniform(2) - 1) of
        {ok, Server} -> Server;
        {error, timeout} -> poll_accept(Listener)
    end.

%% A pool of acceptors shares one listener.
every_acceptor_gets_one_connection(_Config) ->
    Listener = quic_ct:listen(),
    Acceptors = [quic_ct:agent() || _ <- lists:seq(1, 10)],
    Accept = fun() -> quic_ct:new_server(Listener) end,
    Refs = [quic_ct:tell(Acceptor, Accept) || Acceptor <- Acceptors],
    _ = [quic_ct:connect(Listener) || _ <- Acceptors],
    Servers = [
        receive
            {Ref, Server} -> Server
        after ?WAIT_MS -> error(not_accepted)
        end
     || Ref <- Refs
    ],
    ?assertEqual(10, length(lists:usort(Servers))),
    %% Each belongs to its acceptor.
    Test = self(),
    Give = fun(Server) -> fun() -> macula_quic:controlling_process(Server, Test) end end,
    ?assertEqual(
        [ok || _ <- Servers],
        [quic_ct:in(A, Give(S)) || {A, S} <- lists:zip(Acceptors, Servers)]
    ).

%% What a crashed acceptor had asked for is for the next.
an_acceptor_that_has_died_takes_no_connection_along(_Config) ->
    Listener = quic_ct:listen(),
    Dying = quic_ct:agent(),
    _ = quic_ct:tell(Dying, fun() -> macula_quic:accept(Listener, infinity) end),
    mesh_wait:eventually({status, waiting}, fun() -> process_info(Dying, status) end),
    quic_ct:give_up(Dying),
    Also = quic_ct:agent(),
    {ok, _} = quic_ct:in(Also, fun() -> macula_quic:async_accept(Listener, []) end),
    quic_ct:give_up(Also),
    Client = quic_ct:connect(Listener),
    Server = quic_ct:new_server(Listener),
    _ = quic_ct:streams(Client, Server),
    quic_ct:none(Client).

%% What was there already is on its way to an acceptor that dies meanwhile: it is closed as his, or
%% there for the next. A client that neither would befall would have nobody to talk to.
an_acceptor_that_dies_as_it_asks_takes_no_connection_along(_Config) ->
    Listener = quic_ct:listen(),
    [dies_as_it_asks(Listener) || _ <- lists:seq(1, 100)].

dies_as_it_asks(Listener) ->
    Client = quic_ct:connect(Listener),
    mesh_wait:eventually(1, fun() ->
        maps:get(waiting, macula_quic:listener_stats(Listener))
    end),
    {_, Monitor} = spawn_monitor(fun() -> macula_quic:async_accept(Listener, []) end),
    receive
        {'DOWN', Monitor, process, _, normal} -> ok
    end,
    mesh_wait:eventually(true, fun() -> is_closed(Client) orelse is_for_the_next(Listener) end),
    macula_quic:close(Client).

is_closed(Connection) ->
    receive
        {quic, closed, Connection, _} -> true
    after 0 -> false
    end.

is_for_the_next(Listener) ->
    case macula_quic:accept(Listener, 0) of
        {ok, Server} -> macula_quic:close(Server) =:= ok;
        {error, timeout} -> false
    end.

%%% Ends

%% A supervisor that stops a server must not wait for its acceptors.
a_closed_listener_ends_those_who_wait(_Config) ->
    [
        begin
            Listener = quic_ct:listen(),
            {ok, {Address, Port}} = macula_quic:sockname(Listener),
            Acceptor = quic_ct:agent(),
            Accept = fun() -> macula_quic:accept(Listener, infinity) end,
            Accepting = quic_ct:tell(Acceptor, Accept),
            Waits = fun() -> process_info(Acceptor, status) =:= {status, waiting} end,
            mesh_wait:eventually(true, Waits),
            ok = Close(Listener),
            receive
                {Accepting, Result} -> ?assertEqual({error, closed}, Result)
            after ?WAIT_MS -> error(still_waiting)
            end,
            ?assertEqual({error, closed}, macula_quic:accept(Listener, ?WAIT_MS)),
            ?assertEqual({error, closed}, macula_quic:sockname(Listener)),
            ?assertMatch({error, _}, macula_quic:connect(Address, Port, [], 200))
        end
     || Close <- [fun macula_quic:close/1, fun macula_quic:close_listener/1]
    ].

%% An event-style server that asked once more would otherwise wait for good.
a_closed_listener_says_so_to_every_call(Config) ->
    {Cert, Key} = copied(closed, Config),
    {ok, Listener} = macula_quic:listen({?LOOPBACK, 0}, [{certfile, Cert}, {keyfile, Key}]),
    Client = quic_ct:connect(Listener),
    Server = quic_ct:new_server(Listener),
    ok = macula_quic:close(Listener),
    Closed = {error, closed},
    ?assertEqual(Closed, macula_quic:async_accept(Listener, [])),
    ?assertEqual(Closed, macula_quic:accept(Listener, ?WAIT_MS)),
    ?assertEqual(Closed, macula_quic:reload_certificates(Listener)),
    ?assertEqual(Closed, macula_quic:sockname(Listener)),
    %% What got in goes on, and is still counted.
    ?assertMatch(#{connections := 1, waiting := 0}, stats(Listener)),
    ?assertEqual(ok, macula_quic:close_listener(Listener)),
    ok = macula_quic:close(Client),
    ?assertEqual({shutdown, 0}, quic_ct:next(Server)),
    none_new().

%% Requests that a loop makes by mistake must not become memory without end.
too_many_who_wait_to_accept_are_told(_Config) ->
    Most = 65_536,
    Listener = quic_ct:listen(),
    [{ok, Listener} = macula_quic:async_accept(Listener, []) || _ <- lists:seq(1, Most)],
    TooMany = {error, too_many_waiters},
    ?assertEqual(TooMany, macula_quic:async_accept(Listener, [])),
    ?assertEqual(TooMany, macula_quic:accept(Listener, ?WAIT_MS)),
    {Client, _} = {quic_ct:connect(Listener), new_conn()},
    [{ok, Client} = macula_quic:async_accept_stream(Client, []) || _ <- lists:seq(1, Most)],
    ?assertEqual(TooMany, macula_quic:async_accept_stream(Client, [])),
    ?assertEqual(TooMany, macula_quic:accept_stream(Client, ?WAIT_MS)),
    %% One has been served, so one more may wait.
    ?assertEqual({ok, Listener}, macula_quic:async_accept(Listener, [])).

%% Acceptors that crash and are restarted while nobody connects must not use up the places of those
%% who live.
acceptors_that_have_died_take_no_place(_Config) ->
    Listener = quic_ct:listen(),
    {ok, Listener} = macula_quic:async_accept(Listener, []),
    Ask = fun() -> {ok, Listener} = macula_quic:async_accept(Listener, []) end,
    lists:foreach(
        fun(_) ->
            {Acceptor, Monitor} = spawn_monitor(Ask),
            receive
                {'DOWN', Monitor, process, Acceptor, Reason} -> ?assertEqual(normal, Reason)
            end
        end,
        lists:seq(1, 66_000)
    ),
    Client = quic_ct:connect(Listener),
    receive
        {quic, new_conn, _, _} -> ok
    after ?WAIT_MS -> error(not_accepted)
    end,
    ok = macula_quic:close(Client).

%% A node that stops taking in work finishes what it has.
accepted_connections_outlive_their_listener(_Config) ->
    Listener = quic_ct:listen(),
    Client = quic_ct:connect(Listener),
    Server = quic_ct:new_server(Listener),
    ok = macula_quic:close(Listener),
    {Near, Far} = quic_ct:streams(Client, Server),
    ok = macula_quic:send(Far, <<"answer">>),
    ?assertEqual(<<"answer">>, quic_ct:read(Near, 6)),
    quic_ct:none(Client).

%% Nobody will serve them, so they are told.
connections_that_nobody_accepted_end_with_the_listener(_Config) ->
    Listener = quic_ct:listen(),
    Client = quic_ct:connect(Listener),
    mesh_wait:eventually(1, fun() -> figure(waiting, Listener) end),
    ok = macula_quic:close(Listener),
    ?assertEqual({shutdown, 0}, quic_ct:next(Client)).

%% An owner tells a client that breaks QUIC from one that has gone, and so does an operator.
a_client_that_breaks_the_protocol_is_told_by_its_code(_Config) ->
    Listener = quic_ct:listen(),
    Attacker = mesh_attacker:start(Listener, stray, []),
    Server = quic_ct:new_server(Listener),
    Code = ?STREAM_LIMIT_ERROR,
    Ended = #{is_app_closing => false, status => {transport_error, Code}},
    ?assertEqual({transport_shutdown, Ended}, quic_ct:next(Server)),
    ?assertEqual({closed, Ended}, quic_ct:next(Server)),
    ?assertEqual({error, {transport_error, Code}}, macula_quic:open_stream(Server)),
    ?assertMatch(#{ended := {transport, Code}}, mesh_attacker:outcome(Attacker)),
    ok = mesh_attacker:call_off(Attacker).

%% The kernel takes sockets from their owners when it is told to; clients go on looking here.
a_listener_whose_socket_loses_its_port_gets_it_back(_Config) ->
    Listener = quic_ct:listen(),
    {ok, {?LOOPBACK, Port} = Place} = macula_quic:sockname(Listener),
    Before = quic_ct:connect(Listener),
    Server = quic_ct:new_server(Listener),
    case quic_ct:kill_socket(Port) of
        ok ->
            ?assertEqual({socket_lost, undefined}, quic_ct:next(Place)),
            ?assertEqual({socket_rebuilt, undefined}, quic_ct:next(Place)),
            After = quic_ct:connect(Listener),
            ?assertEqual({ok, {?LOOPBACK, Port}}, macula_quic:peername(After)),
            ?assertNotEqual(Server, quic_ct:new_server(Listener)),
            % It was of the former socket, and its client learns that from the new one.
            {ok, Stream} = macula_quic:open_stream(Before),
            ok = macula_quic:send(Stream, <<"still there?">>),
            ?assertEqual({error, reset}, macula_quic:recv(Stream, ?WAIT_MS));
        {skip, _} = Skip ->
            Skip
    end.

%% The port must be free when the supervisor starts the server again.
a_listener_dies_with_its_owner(_Config) ->
    Owner = quic_ct:agent(),
    Listener = quic_ct:in(Owner, fun() -> quic_ct:listen() end),
    Client = quic_ct:connect(Listener),
    Server = quic_ct:new_server(Listener),
    quic_ct:give_up(Owner),
    ?assertEqual({error, closed}, macula_quic:accept(Listener, ?WAIT_MS)),
    %% The accepted one is the test's.
    _ = quic_ct:streams(Client, Server).

%% A starter process sets the listener up and leaves it to the server.
a_listener_goes_to_its_new_owner(_Config) ->
    [Starter, Server, Dead] = [quic_ct:agent() || _ <- [1, 2, 3]],
    Listener = quic_ct:in(Starter, fun() -> quic_ct:listen() end),
    Give = fun(To) -> fun() -> macula_quic:controlling_process(Listener, To) end end,
    quic_ct:give_up(Dead),
    ?assertEqual({error, noproc}, quic_ct:in(Starter, Give(Dead))),
    ?assertEqual({error, not_owner}, macula_quic:controlling_process(Listener, Server)),
    ?assertEqual(ok, quic_ct:in(Starter, Give(Server))),
    quic_ct:give_up(Starter),
    _ = quic_ct:connect(Listener),
    quic_ct:give_up(Server),
    mesh_wait:eventually({error, closed}, fun() -> macula_quic:sockname(Listener) end).

%% Tests and shells forget listeners.
a_listener_that_nobody_holds_is_closed(_Config) ->
    {ok, {Address, Port}} = macula_quic:sockname(quic_ct:listen()),
    quic_ct:forget(),
    true = erlang:garbage_collect(),
    ?assertMatch({error, _}, macula_quic:connect(Address, Port, [], 200)).

%%% Limits

%% A server that does not accept must not collect connections without end.
a_full_backlog_refuses(_Config) ->
    Listener = quic_ct:listen([{backlog, 2}]),
    _ = [quic_ct:connect(Listener), quic_ct:connect(Listener)],
    mesh_wait:eventually(2, fun() -> figure(waiting, Listener) end),
    ?assertEqual({error, refused}, dial(Listener)),
    ?assertMatch(#{waiting := 2, refused := #{backlog := 1}}, stats(Listener)),
    _ = quic_ct:new_server(Listener),
    ?assertMatch({ok, _}, dial(Listener)).

%% A flood must leave the node alive, and honest clients get in when it is over.
too_many_connections_are_refused_and_places_come_back(_Config) ->
    Listener = quic_ct:listen([{max_connections, 2}]),
    [First, _Second] = [quic_ct:connect(Listener) || _ <- [1, 2]],
    [_, _] = [quic_ct:new_server(Listener) || _ <- [1, 2]],
    ?assertEqual({error, refused}, dial(Listener)),
    ?assertEqual({error, refused}, dial(Listener)),
    ?assertMatch(#{connections := 2, refused := #{max_connections := 2}}, stats(Listener)),
    ok = macula_quic:close(First),
    mesh_wait:eventually(1, fun() -> figure(connections, Listener) end),
    %% Its place comes back a little later, with its memory.
    mesh_wait:eventually(ok, fun() -> element(1, dial(Listener)) end).

%% One address must not use up everybody's places.
too_many_connections_of_one_address_are_refused(_Config) ->
    Options = quic_ct:server_options([{max_connections_per_address, 1}]),
    {ok, Listener} = macula_quic:listen(0, Options),
    {ok, {_, Port}} = macula_quic:sockname(quic_ct:keep(Listener)),
    Dial = fun(Address) -> macula_quic:connect(Address, Port, [], ?WAIT_MS) end,
    {ok, First} = Dial(?LOOPBACK),
    ?assertEqual({error, refused}, Dial(?LOOPBACK)),
    ?assertMatch({ok, _}, Dial(?LOOPBACK6)),
    ?assertMatch(#{refused := #{max_connections_per_address := 1}}, stats(Listener)),
    ok = macula_quic:close(First),
    mesh_wait:eventually(1, fun() -> figure(connections, Listener) end),
    mesh_wait:eventually(ok, fun() -> element(1, Dial(?LOOPBACK)) end).

%% Handshakes are the dear part, and anybody can begin one.
too_many_handshakes_are_refused(_Config) ->
    Options = [{max_handshakes, 1}, {handshake_idle_timeout_ms, 60_000}],
    Listener = quic_ct:listen(Options),
    ok = begin_handshake(Listener),
    mesh_wait:eventually(1, fun() -> figure(handshakes, Listener) end),
    ?assertEqual({error, refused}, dial(Listener)),
    ?assertMatch(#{refused := #{max_handshakes := 1}}, stats(Listener)).

%% One address must not keep everybody else from beginning.
too_many_handshakes_of_one_address_are_refused(_Config) ->
    Options = [{max_handshakes_per_address, 1}, {handshake_idle_timeout_ms, 60_000}],
    {ok, Listener} = macula_quic:listen(0, quic_ct:server_options(Options)),
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    ok = begin_handshake_at(?LOOPBACK, Port),
    mesh_wait:eventually(1, fun() -> figure(handshakes, Listener) end),
    Dial = fun(Address) -> macula_quic:connect(Address, Port, [], ?WAIT_MS) end,
    ?assertEqual({error, refused}, Dial(?LOOPBACK)),
    [
        begin
            ?assertMatch({ok, _}, Dial(?LOOPBACK6)),
            %% Who dials knows first that it has worked.
            mesh_wait:eventually(1, fun() -> figure(handshakes, Listener) end)
        end
     || _ <- [1, 2]
    ],
    ?assertMatch(#{refused := #{max_handshakes_per_address := 1}}, stats(Listener)).

%% Somebody who begins and does not finish kept out all those who would.
handshakes_under_way_take_no_place_of_the_backlog(_Config) ->
    Listener = quic_ct:listen([{backlog, 1}, {handshake_idle_timeout_ms, 60_000}]),
    [ok = begin_handshake(Listener) || _ <- [1, 2]],
    mesh_wait:eventually(2, fun() -> figure(handshakes, Listener) end),
    Client = quic_ct:connect(Listener),
    _ = quic_ct:streams(Client, quic_ct:new_server(Listener)).

%% It was let in while there was room; both are connected before one of them is too many.
a_client_that_comes_by_while_the_backlog_runs_full_is_closed(_Config) ->
    Listener = quic_ct:listen([{backlog, 1}, {handshake_idle_timeout_ms, 60_000}]),
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    Relay = mesh_relay:start(Port, 1),
    ok = mesh_relay:set(Relay, down, #{blackout => true}),
    {Address, Near} = mesh_relay:address(Relay),
    Test = self(),
    Dial = fun() ->
        {ok, Client} = macula_quic:connect(Address, Near, [], 30_000),
        ok = macula_quic:controlling_process(Client, Test),
        Client
    end,
    Agents = [quic_ct:agent() || _ <- [1, 2]],
    Dialling = [quic_ct:tell(Agent, Dial) || Agent <- Agents],
    mesh_wait:eventually(2, fun() -> figure(handshakes, Listener) end),
    ok = mesh_relay:clear(Relay),
    Clients = [
        receive
            {Ref, Client} -> Client
        after 30_000 -> error(not_connected)
        end
     || Ref <- Dialling
    ],
    mesh_wait:eventually({1, #{backlog => 1}}, fun() ->
        #{waiting := Waiting, refused := Refused} = stats(Listener),
        {Waiting, Refused}
    end),
    receive
        {quic, shutdown, Late, Code} ->
            ?assertEqual(0, Code),
            [InTime] = Clients -- [Late],
            _ = quic_ct:streams(InTime, quic_ct:new_server(Listener))
    after ?WAIT_MS -> error(not_closed)
    end,
    ok = mesh_relay:stop(Relay).

%% Half-open handshakes are the cheapest attack.
a_handshake_that_never_ends_is_given_up(_Config) ->
    Listener = quic_ct:listen([{handshake_idle_timeout_ms, 200}]),
    ok = begin_handshake(Listener),
    mesh_wait:eventually(
        #{connections => 0, handshakes => 0, waiting => 0, refused => #{handshake_timeout => 1}},
        fun() -> stats(Listener) end
    ),
    %% It gives up slow ones, too.
    mesh_wait:eventually(ok, fun() -> element(1, dial(Listener)) end).

%% RFC 9000, section 8.1.2: a forged source address never sees the token, and costs nothing here.
retry_lets_honest_clients_in(_Config) ->
    Listener = quic_ct:listen([{retry_above_handshakes, 0}]),
    Client = quic_ct:connect(Listener),
    _ = quic_ct:streams(Client, quic_ct:new_server(Listener)),
    ok = begin_handshake(Listener),
    ?assertMatch(#{handshakes := 0, connections := 1, refused := Refused} when
        map_size(Refused) =:= 0, stats(Listener)).

%%% Certificates

%% A renewed certificate must not cost a node its connections.
new_certificates_are_for_new_connections(Config) ->
    {Cert, Key} = copied(old, Config),
    {ok, Listener} = macula_quic:listen({?LOOPBACK, 0}, [{certfile, Cert}, {keyfile, Key}]),
    OldHash = quic_certs:spki(Cert),
    NewHash = replace(Cert, Key, Config),
    Pinned = fun(Hash) -> dial(Listener, [{verify, {spki_sha256, Hash}}]) end,
    {ok, Old} = Pinned(OldHash),
    Server = quic_ct:new_server(Listener),
    ?assertEqual(ok, macula_quic:reload_certificates(Listener)),
    ?assertEqual({error, {unverified, wrong_key}}, Pinned(OldHash)),
    ?assertMatch({ok, _}, Pinned(NewHash)),
    _ = quic_ct:streams(Old, Server).

%% A botched renewal leaves the node as it was.
certificates_that_cannot_be_read_change_nothing(Config) ->
    {Cert, Key} = copied(kept, Config),
    {ok, Listener} = macula_quic:listen({?LOOPBACK, 0}, [{certfile, Cert}, {keyfile, Key}]),
    Hash = quic_certs:spki(Cert),
    ok = file:write_file(Cert, <<"text">>),
    ?assertEqual(
        {error, {bad_certificate, list_to_binary(Cert), no_certificate}},
        macula_quic:reload_certificates(Listener)
    ),
    ?assertMatch({ok, _}, dial(Listener, [{verify, {spki_sha256, Hash}}])).

%%% Internal

figure(Key, Listener) -> maps:get(Key, stats(Listener)).

stats(Listener) -> macula_quic:listener_stats(Listener).

dial(Listener) -> dial(Listener, []).

dial(Listener, Options) ->
    {ok, {Address, Port}} = macula_quic:sockname(quic_ct:keep(Listener)),
    macula_quic:connect(Address, Port, Options, ?WAIT_MS).

new_conn() ->
    receive
        {quic, new_conn, Connection, Facts} -> {Connection, Facts}
    after ?WAIT_MS -> error(no_connection)
    end.

%% No connection has been announced: asked once something has happened that would have come later.
none_new() ->
    receive
        {quic, new_conn, _, _} = Message -> error({unexpected, Message})
    after 0 -> ok
    end.

%% A client that says its first word and then nothing: a relay takes what a real one sends, and
%% passes on the first datagram alone.
begin_handshake(Listener) ->
    {ok, {Address, Port}} = macula_quic:sockname(Listener),
    begin_handshake_at(Address, Port).

begin_handshake_at(Address, Port) ->
    {ok, Relay} = gen_udp:open(0, [binary, {ip, ?LOOPBACK}, {active, false}]),
    {ok, RelayPort} = inet:port(Relay),
    Dialler = quic_ct:agent(),
    _ = quic_ct:tell(Dialler, fun() -> macula_quic:connect(?LOOPBACK, RelayPort, [], 2_000) end),
    {ok, {_, _, First}} = gen_udp:recv(Relay, 0, ?WAIT_MS),
    ok = gen_udp:send(Relay, Address, Port, First),
    {ok, {Address, Port, _Answer}} = receive_from(Relay, Port),
    ok.

receive_from(Relay, Port) ->
    case gen_udp:recv(Relay, 0, ?WAIT_MS) of
        {ok, {_, Port, _}} = Received -> Received;
        {ok, _} -> receive_from(Relay, Port)
    end.

%% A certificate whose files a test may change.
copied(Name, Config) ->
    quic_certs:self_signed(filename:join(proplists:get_value(priv_dir, Config), Name)).

%% Puts another certificate in its place; the hash of its key.
replace(Cert, Key, Config) ->
    {OtherCert, OtherKey} = copied(other, Config),
    Hash = quic_certs:spki(OtherCert),
    ok = file:rename(OtherCert, Cert),
    ok = file:rename(OtherKey, Key),
    Hash.
